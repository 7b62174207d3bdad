"""`Gem`: one shared instance that embeds and generates, and `load`, which finds or makes it.

Turns texts into rows (prompts, over-long texts, batches) and leaves the computing to an engine.
Knows nothing about indexes, files of text or adapters of other frameworks.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakValueDictionary

import numpy as np

from gem_rag._utils.progress import progress_bar
from gem_rag._utils.suggestions import check_choice, did_you_mean
from gem_rag.core.arrays import FloatArray
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint
from gem_rag.core.config import GemConfig
from gem_rag.core.layout import Row, plan_batches
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.core.truncation import Truncation, head_length, pieces, token_spans, windows
from gem_rag.engines.engine import Engine
from gem_rag.errors import GemError, InputError
from gem_rag.generation.chat import PLAIN_STOP, ChatReply, Message, Tool, Tools
from gem_rag.generation.chat import encode as encode_chat
from gem_rag.generation.sampling import Generation, Sampling, stop_strings

if TYPE_CHECKING:
    import tokenizers

EngineName = Literal["auto", "transformers", "vllm"]
Prompt = Sequence[int] | str

_TEXTS_AT_ONCE = 8192  # tokenised and sorted together: bounds memory, keeps padding low


class Gem:
    """One set of weights that embeds and generates; made by `load`, safe from many threads.

    config: the checkpoint's `GemConfig`.
    dim: length of an embedding.
    max_length: most tokens of one text (its prompt included) in one embedding pass.
    overlong: what happens to longer texts unless a call says otherwise. "truncate" embeds their
        beginning and warns once, "windows" averages over pieces that cover them, "error" refuses.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        *,
        overlong: Truncation = "truncate",
        batch_tokens: int | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._engine_or_none: Engine | None = engine
        self.config: GemConfig = checkpoint.config
        self.dim = engine.dim
        self.max_length = min(self.config.max_length or engine.longest_text, engine.longest_text)
        check_choice("overlong", overlong, get_args(Truncation))
        self.overlong = overlong
        self._batch_tokens = batch_tokens or engine.batch_tokens
        self._lock = threading.Lock()
        self._references = 0
        self._fingerprint: str | None = None
        self._warned = False

    # -- embedding ---------------------------------------------------------------------------

    def embed_queries(
        self, texts: Sequence[str], *, overlong: Truncation | None = None, progress: bool = False
    ) -> FloatArray:
        """Unit vectors of questions, in order: float32 [n, dim].

        Raises InputError if a text is empty, or over-long under the policy "error".
        """
        return self._embed(texts, self.config.prompts["query"], overlong, progress)

    def embed_documents(
        self, texts: Sequence[str], *, overlong: Truncation | None = None, progress: bool = False
    ) -> FloatArray:
        """Unit vectors of passages, in order: float32 [n, dim].

        Raises InputError if a text is empty, or over-long under the policy "error".
        """
        return self._embed(texts, self.config.prompts["document"], overlong, progress)

    def embed_chunks(self, document: str, spans: Sequence[tuple[int, int]]) -> FloatArray:
        """Unit vectors of parts of a document, each computed in its context: float32 [n, dim].

        spans: [start, end) characters of each part. One forward pass gives all of them: the
        special tokens of each part are observers that see its tokens, and no text token sees
        them. A document longer than `max_length` is read in windows that end with their parts.

        Raises InputError if a span is empty, outside the document, or longer than `max_length`.
        """
        prompt = self.config.prompts["document"]
        encoded = self._text.encode([prompt + document])[0]
        ids, head = encoded.ids, head_length(encoded, prompt)
        parts = token_spans(encoded, spans, len(prompt), len(document))
        vectors = np.empty((len(parts), self.dim), dtype=np.float32)
        for indices, (start, stop) in windows(parts, head, len(ids), self.max_length):
            shift = head - start
            local = [(parts[i][0] + shift, parts[i][1] + shift) for i in indices]
            row = Row(ids[:head] + ids[start:stop], tuple(local))
            vectors[indices] = self._engine.embed([row])
        _check_finite(vectors, [document[start:end] for start, end in spans])
        return vectors

    def count_tokens(self, text: str) -> int:
        """Tokens the model reads for this text, with what its tokenizer puts around it."""
        return self._text.count(text)

    # -- generating --------------------------------------------------------------------------

    def generate(self, prompts: Sequence[Prompt], **sampling: Any) -> list[Generation]:
        """Continue prompts; results in order.

        prompts: plain texts, in which special-token names and chat markers are plain text too;
            or token ids.
        sampling: the fields of `Sampling` (max_tokens, temperature, top_p, top_k, stop, seed,
            schema, grammar); max_tokens defaults to 256, or fewer where the context ends.

        Raises InputError if a prompt and `max_tokens` do not fit the model's context.
        """
        if isinstance(prompts, str):
            raise InputError("generate() takes a list of prompts, not one string: put it in a list")
        ids = [self._prompt_ids(prompt) for prompt in prompts]
        settings = self._sampling(sampling, ids)
        results: list[Generation | None] = [None] * len(ids)
        lengths = [len(prompt) + settings.max_tokens for prompt in ids]
        for batch in plan_batches(lengths, self._batch_tokens):
            generated = self._engine.generate([ids[i] for i in batch], settings)
            for index, generation in zip(batch, generated, strict=True):
                results[index] = generation
        return [result for result in results if result is not None]

    def stream(self, prompt: Prompt, **sampling: Any) -> Generator[str, None, Generation]:
        """Continue one prompt, piece by piece; arguments and errors as for `generate`, which gives
        what the generator returns."""
        ids = self._prompt_ids(prompt)
        return self._engine.stream(ids, self._sampling(sampling, [ids]))

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        **sampling: Any,
    ) -> ChatReply:
        """Answer a conversation, by the model's own chat template, or plainly without one.

        messages: {"role": ..., "content": ...} in order, as OpenAI has them, calls of tools and
            their results too. Markers inside contents are plain text.
        tools: {"type": "function", "function": {"name", "description", "parameters"}} each; a call
            follows the JSON schema in "parameters", whatever the model.
        tool_choice: "auto", "any", "none", or a tool's name.

        Raises InputError if the messages or tools are not of this form, the model's template
        refuses them, or they do not fit its context.
        """
        held = Tools(tools, tool_choice, self._text.template)
        ids, settings = self._conversation(messages, held, sampling)
        return held.read(self.generate([ids], **settings)[0])

    def stream_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        **sampling: Any,
    ) -> Generator[str, None, ChatReply]:
        """As `chat`, piece by piece; a call comes with what the generator returns."""
        held = Tools(tools, tool_choice, self._text.template)
        ids, settings = self._conversation(messages, held, sampling)
        return held.read_stream(self.stream(ids, **settings))

    def _conversation(
        self, messages: Sequence[Message], tools: Tools, sampling: dict[str, Any]
    ) -> tuple[list[int], dict[str, Any]]:
        ids = encode_chat(self._text, messages, tools)
        if not self.has_chat_template:
            sampling = {**sampling, "stop": (*stop_strings(sampling.get("stop")), *PLAIN_STOP)}
        if tools:
            settings = self._sampling(sampling, [ids])
            if forms := tools.forms(messages):
                tools.choose(int(self.score(ids, forms).argmax()))
            sampling = {**sampling, "grammar": tools.grammar(settings.max_tokens)}
        return ids, sampling

    def score(self, prompt: Prompt, continuations: Sequence[str]) -> FloatArray:
        """How well each text continues the prompt: mean log-probability of its tokens, float32 [n].

        Raises InputError if a continuation is empty, or does not fit the context.
        """
        ids = self._prompt_ids(prompt)
        tokens = [self._text.encode_continuation(text) for text in continuations]
        for text, found in zip(continuations, tokens, strict=True):
            if not found or len(ids) + len(found) > self.context:
                raise InputError(
                    f"{text[:60]!r} has {len(found)} tokens after a prompt of {len(ids)}, and the "
                    f"model's context is {self.context}: give it from 1 to what fits"
                )
        return self._engine.score(ids, tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain text, as `generate` reads it."""
        return self._text.encode([text])[0].ids

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a conversation, as `chat` reads it; errors as there."""
        return encode_chat(self._text, messages, Tools(tools, template=self._text.template))

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations, and says how they look."""
        return bool(self._text.template)

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The model's tokenizer, for which everything is plain text; for splitters."""
        return self._text.plain

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its continuation together."""
        return self._engine.context

    # -- identity and lifetime ---------------------------------------------------------------

    @property
    def name(self) -> str:
        """What `load` finds it by: a bundled or hub name, or an absolute path."""
        return self._checkpoint.name

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that name the vectors this model gives; see `checkpoint`."""
        with self._lock:
            if self._fingerprint is None:
                self._fingerprint = self._checkpoint.fingerprint()
            return self._fingerprint

    def close(self) -> None:
        """Give one reference back; the last one frees the weights."""
        with self._lock:
            self._references -= 1
            if self._references > 0 or self._engine_or_none is None:
                return
            engine, self._engine_or_none = self._engine_or_none, None
        engine.close()

    def __enter__(self) -> Gem:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Gem({self.name!r}, k={self.config.k}, dim={self.dim})"

    def __reduce__(self) -> Any:
        raise TypeError("a Gem holds weights and cannot be pickled: pass the model's name instead")

    @property
    def _engine(self) -> Engine:
        engine = self._engine_or_none
        if engine is None:
            raise GemError("this Gem has been closed: load the model again")
        return engine

    @property
    def _text(self) -> SafeTokenizer:
        return self._engine.text

    def _retain(self) -> bool:
        """Take a reference, unless the weights are gone."""
        with self._lock:
            self._references += self._engine_or_none is not None
            return self._engine_or_none is not None

    # -- texts to rows -----------------------------------------------------------------------

    def _embed(
        self, texts: Sequence[str], prompt: str, overlong: Truncation | None, progress: bool
    ) -> FloatArray:
        _check_texts(texts)
        policy = overlong or self.overlong
        check_choice("overlong", policy, get_args(Truncation))
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with progress_bar("embedding", len(texts), progress) as advance:
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                part = texts[start : start + _TEXTS_AT_ONCE]
                encoded = self._text.encode([prompt + text for text in part])
                if policy == "truncate":
                    self._warn_truncated(max(len(e) for e in encoded))
                read = [pieces(e, prompt, self.max_length, policy) for e in encoded]
                vectors[start : start + len(part)] = self._embed_pieces(read, advance)
        _check_finite(vectors, texts)
        return vectors

    def _embed_pieces(
        self, texts: Sequence[list[list[int]]], advance: Callable[[int], None]
    ) -> FloatArray:
        """One vector for each text: the mean of its pieces', weighted by their tokens."""
        rows = [Row.whole(piece) for text in texts for piece in text]
        owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        first = np.diff(owner, prepend=-1) > 0
        total = np.zeros((len(texts), self.dim), dtype=np.float32)
        for batch in plan_batches([row.length(self.config.k) for row in rows], self._batch_tokens):
            vectors = self._engine.embed([rows[i] for i in batch])
            weights = np.array([len(rows[i].text) for i in batch], dtype=np.float32)
            np.add.at(total, owner[batch], weights[:, None] * vectors)
            advance(int(first[batch].sum()))
        mean: FloatArray = total / np.linalg.norm(total, axis=1, keepdims=True)
        return mean

    def _warn_truncated(self, longest: int) -> None:
        if longest <= self.max_length:
            return
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            warnings.warn(
                f"a text has {longest} tokens and only its first {self.max_length} are embedded; "
                "split it, or use overlong='windows' (said once)",
                stacklevel=4,
            )

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise InputError("the prompt is empty: give the model something to continue")
        for token in ids:
            if not 0 <= token < self._engine.vocabulary:
                raise InputError(f"the model has no token {token}: its tokens are 0 to "
                                 f"{self._engine.vocabulary - 1}")  # fmt: skip
        return ids

    def _sampling(self, settings: dict[str, Any], prompts: Sequence[Sequence[int]]) -> Sampling:
        """Checked settings; without `max_tokens`, what fits up to the usual number."""
        known = list(Sampling.__dataclass_fields__)
        for name in settings:
            if name not in known:
                raise InputError(f"there is no sampling setting {name!r}{did_you_mean(name, known)}: "
                                 f"use {', '.join(known)}")  # fmt: skip
        longest = max(map(len, prompts), default=0)
        if settings.get("max_tokens") is None:
            fitting = max(1, min(Sampling.max_tokens, self.context - longest))
            settings = {**settings, "max_tokens": fitting}
        sampling = Sampling(**settings)
        if longest + sampling.max_tokens > self.context:
            raise InputError(
                f"the prompt has {longest} tokens and max_tokens is {sampling.max_tokens}, more "
                f"than the model's context of {self.context}: shorten one of them"
            )
        return sampling


# -- load ------------------------------------------------------------------------------------

_instances: WeakValueDictionary[Any, Gem] = WeakValueDictionary()
_locks: dict[Any, threading.Lock] = {}
_GEM_OPTIONS = ("overlong", "batch_tokens")


def load(
    model: str | Path | Gem = "gem-tiny",
    engine: EngineName = "auto",
    *,
    revision: str | None = None,
    cache_folder: str | Path | None = None,
    k: int | None = None,
    **options: Any,
) -> Gem:
    """The shared instance of a model: the same model and options give the same object.

    model: "gem-tiny" (bundled), a local folder, or a hub name; a `Gem` is handed back.
    engine: what runs it: "transformers" (which is what "auto" takes), or "vllm".
    revision: of a hub model.
    cache_folder: where hub models are kept, if not in the hub's own place.
    k: special tokens for a model that is not GEM-trained (default 1); its embeddings are poor.
    options: `overlong` and `batch_tokens` (see `Gem`), and the engine's own.

    Each call takes a reference, `Gem.close` gives it back. Raises InputError if there is no such
    model or option, GemError if the architecture cannot give GEM embeddings.
    """
    if isinstance(model, Gem):
        if options or k is not None or revision is not None:
            raise InputError("a Gem is loaded already: give load() options with a model's name")
        if not model._retain():
            raise GemError("this Gem has been closed: load the model again")
        return model
    make = _engine_class(engine)
    _check_options(make, options)
    checkpoint = open_checkpoint(model, revision, cache_folder)
    if k is not None:
        checkpoint = checkpoint.with_k(k)
    if not checkpoint.trained:
        warnings.warn(
            f"{checkpoint.name} has not been GEM-trained: it generates as ever, but its "
            "embeddings are poor",
            stacklevel=2,
        )
    own_k, settings = checkpoint.config.k, repr(sorted(options.items()))
    key = (checkpoint.path, checkpoint.stamp(), make, own_k, settings)
    with _locks.setdefault(key, threading.Lock()):
        gem = _instances.get(key)
        if gem is None or not gem._retain():
            own = {name: options.pop(name) for name in _GEM_OPTIONS if name in options}
            gem = Gem(checkpoint, make(checkpoint, **options), **own)
            gem._retain()
            _instances[key] = gem
        return gem


def _engine_class(engine: str) -> type[Engine]:
    if engine not in get_args(EngineName):
        known = get_args(EngineName)
        raise InputError(f"there is no engine {engine!r}{did_you_mean(engine, known)}: use one of "
                         f"{', '.join(known)}")  # fmt: skip
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


def _check_options(make: type[Engine], options: dict[str, Any]) -> None:
    parameters = inspect.signature(make).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return  # handed on to a library, which the engine asks
    known = [*list(parameters)[1:], *_GEM_OPTIONS]
    for name in options:
        if name not in known:
            raise InputError(f"load() has no option {name!r}{did_you_mean(name, known)}: it takes "
                             f"{', '.join(known)}")  # fmt: skip


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InputError("texts must be a list of strings, not one string: put it in a list")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {index} is {type(text).__name__}, not a string")
        if not text.strip():
            raise InputError(f"text {index} is empty: leave it out")


def _check_finite(vectors: FloatArray, texts: Sequence[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise GemError(f"the model gives NaN for text {bad[0]} ({texts[bad[0]][:60]!r}): its "
                       "weights or its dtype are not fit for it")  # fmt: skip
