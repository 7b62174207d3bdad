"""`load`, which finds the shared instance of a model, or makes it."""

from __future__ import annotations

import inspect
import threading
import warnings
from pathlib import Path
from typing import Any, Literal, get_args
from weakref import WeakValueDictionary

from gem_rag._utils.deprecation import renamed_keyword
from gem_rag._utils.suggestions import check_known
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.engines.engine import Engine
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem

EngineName = Literal["auto", "transformers", "vllm"]

_instances: WeakValueDictionary[Any, Gem] = WeakValueDictionary()
_locks: dict[Any, threading.Lock] = {}
_GEM_OPTIONS = ("truncation", "batch_tokens")


@renamed_keyword("overlong", "truncation")
def load(
    model: str | Path | Gem = "gem-tiny",
    engine: EngineName = "auto",
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    cache_folder: str | Path | None = None,
    k: int | None = None,
    **options: Any,
) -> Gem:
    """The shared instance of a model: the same model and options give the same object.

    Each call takes a reference, which `Gem.close` releases.

    Args:
        model: An installed model's name ("gem-tiny" is bundled), a local folder, a GGUF file, or a
            hub name; a `Gem` is returned as it is.
        engine: What runs the model: "transformers" (which "auto" stands for) or "vllm".
        base: The model that an adapter-only checkpoint runs on, likewise; default the one it names,
            which is looked for among installed models, in the hub's cache, and on the hub.
        revision: Revision of a hub model.
        cache_folder: Where hub models are kept, if not in the hub's default cache.
        k: Special tokens for a model that is not GEM-trained (default 1); its embeddings are poor.
        **options: `truncation` and `batch_tokens` (tokens in one embedding batch), and the
            engine's own options (see `TransformersEngine`, `VllmEngine`).

    Returns:
        The instance.

    Raises:
        InputError: There is no such model or option.
        GemError: The architecture cannot give GEM embeddings.
    """
    if isinstance(model, Gem):
        if options or k is not None or revision is not None:
            raise InputError("a Gem is loaded already: give load() options with a model's name")
        if not model._retain():
            raise GemError("this Gem has been closed: load the model again")
        return model
    engine_class = _engine_class(engine)
    _check_options(engine_class, options)
    checkpoint = open_checkpoint(model, revision, cache_folder, base)
    if k is not None:
        checkpoint = checkpoint.with_k(k)
    if not checkpoint.trained:
        warnings.warn(
            f"{checkpoint.name} has not been GEM-trained: it generates as ever, but its "
            "embeddings are poor",
            stacklevel=3,
        )
    settings = checkpoint.config.k, repr(sorted(options.items()))
    key = (checkpoint.path, checkpoint.stamp(), engine_class, *settings)
    with _locks.setdefault(key, threading.Lock()):
        gem = _instances.get(key)
        if gem is None or not gem._retain():
            gem_options = {name: options.pop(name) for name in _GEM_OPTIONS if name in options}
            gem = Gem(checkpoint, engine_class(checkpoint, **options), **gem_options)
            gem._retain()
            _instances[key] = gem
        return gem


def _engine_class(engine: str) -> type[Engine]:
    names = get_args(EngineName)
    check_known([engine], names, "there is no engine", f": use one of {', '.join(names)}")
    if engine == "vllm":
        try:
            from gem_rag.engines.vllm.vllm_engine import VllmEngine
        except ImportError as error:
            raise InputError(
                f"the engine 'vllm' needs vLLM ({error}): pip install 'gem-rag[vllm]'"
            ) from error
        return VllmEngine
    from gem_rag.engines.transformers_engine import TransformersEngine

    return TransformersEngine


def _check_options(engine_class: type[Engine], options: dict[str, Any]) -> None:
    parameters = inspect.signature(engine_class).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return  # passed on to a library, which the engine checks them against
    known = [*list(parameters)[1:], *_GEM_OPTIONS]
    check_known(options, known, "load() has no option", f": it takes {', '.join(known)}")
