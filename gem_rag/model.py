"""`Gem`: one shared instance that embeds and generates, and `load`, which finds or makes it.

Turns texts into rows (prompts, over-long texts, batches) and leaves the computing to an engine.
Knows nothing about indexes, files of text or adapters of other frameworks.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakValueDictionary

import numpy as np

from gem_rag.checkpoint import Checkpoint, open_checkpoint
from gem_rag.config import GemConfig, nearest
from gem_rag.engines.base import Engine, FloatArray, Generation, Sampling
from gem_rag.errors import GemError, InputError
from gem_rag.layout import Row, plan_batches
from gem_rag.progress import progress_bar
from gem_rag.tokens import TextEncoder

if TYPE_CHECKING:
    import tokenizers

EngineName = Literal["auto", "transformers"]
Overlong = Literal["truncate", "windows", "error"]
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
        overlong: Overlong = "truncate",
        batch_tokens: int | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._engine_or_none: Engine | None = engine
        self.config: GemConfig = checkpoint.config
        self.dim = engine.dim
        self.max_length = min(self.config.max_length or engine.longest_text, engine.longest_text)
        self.overlong = _checked_overlong(overlong)
        self._batch_tokens = batch_tokens or engine.batch_tokens
        self._lock = threading.Lock()
        self._references = 0
        self._fingerprint: str | None = None
        self._warned = False

    # -- embedding ---------------------------------------------------------------------------

    def embed_queries(
        self, texts: Sequence[str], *, overlong: Overlong | None = None, progress: bool = False
    ) -> FloatArray:
        """Unit vectors of questions, in order: float32 [n, dim].

        Raises InputError if a text is empty, or over-long under the policy "error".
        """
        return self._embed(texts, self.config.prompts["query"], overlong, progress)

    def embed_documents(
        self, texts: Sequence[str], *, overlong: Overlong | None = None, progress: bool = False
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
        parts = [_token_span(encoded, span, len(prompt), len(document)) for span in spans]
        vectors = np.empty((len(parts), self.dim), dtype=np.float32)
        for indices, window in self._windows(parts, len(encoded.ids)):
            local = tuple((parts[i][0] - window[0], parts[i][1] - window[0]) for i in indices)
            row = Row(encoded.ids[window[0] : window[1]], local)
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
        sampling: the fields of `Sampling` (max_tokens, temperature, top_p, top_k, stop, seed).

        Raises InputError if a prompt and `max_tokens` do not fit the model's context.
        """
        if isinstance(prompts, str):
            raise InputError("generate() takes a list of prompts, not one string: put it in a list")
        settings = _sampling(sampling)
        ids = [self._prompt_ids(prompt, settings) for prompt in prompts]
        results: list[Generation | None] = [None] * len(ids)
        lengths = [len(prompt) + settings.max_tokens for prompt in ids]
        for batch in plan_batches(lengths, self._batch_tokens):
            generated = self._engine.generate([ids[i] for i in batch], settings)
            for index, generation in zip(batch, generated, strict=True):
                results[index] = generation
        return [result for result in results if result is not None]

    def stream(self, prompt: Prompt, **sampling: Any) -> Iterator[str]:
        """Continue one prompt, piece by piece; arguments and errors as for `generate`."""
        settings = _sampling(sampling)
        return self._engine.stream(self._prompt_ids(prompt, settings), settings)

    def chat(self, messages: Sequence[dict[str, Any]], **sampling: Any) -> Generation:
        """Answer a conversation, by the model's own chat template.

        messages: {"role": ..., "content": ...} in order. Markers inside contents are plain text.

        Raises InputError if the model has no chat template or it refuses the messages.
        """
        return self.generate([self.encode_chat(messages)], **sampling)[0]

    def stream_chat(self, messages: Sequence[dict[str, Any]], **sampling: Any) -> Iterator[str]:
        """As `chat`, piece by piece."""
        return self.stream(self.encode_chat(messages), **sampling)

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain text, as `generate` reads it."""
        return self._text.encode([text])[0].ids

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation, as `chat` reads it; errors as there."""
        return self._text.encode_chat(messages)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return bool(self._text.tokenizer.chat_template)

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
    def _text(self) -> TextEncoder:
        return self._engine.text

    def _retain(self) -> bool:
        """Take a reference, unless the weights are gone."""
        with self._lock:
            self._references += self._engine_or_none is not None
            return self._engine_or_none is not None

    # -- texts to rows -----------------------------------------------------------------------

    def _embed(
        self, texts: Sequence[str], prompt: str, overlong: Overlong | None, progress: bool
    ) -> FloatArray:
        _check_texts(texts)
        policy = _checked_overlong(overlong or self.overlong)
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with progress_bar("embedding", len(texts), progress) as advance:
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                part = texts[start : start + _TEXTS_AT_ONCE]
                encoded = self._text.encode([prompt + text for text in part])
                if policy == "truncate":
                    self._warn_truncated(max(len(e) for e in encoded))
                pieces = [self._pieces(e, len(prompt), policy) for e in encoded]
                vectors[start : start + len(part)] = self._embed_pieces(pieces, advance)
        _check_finite(vectors, texts)
        return vectors

    def _embed_pieces(self, pieces: list[list[list[int]]], advance: Any) -> FloatArray:
        """One vector for each text: the mean of its pieces', weighted by their tokens."""
        rows = [Row.whole(piece) for text in pieces for piece in text]
        owner = np.repeat(np.arange(len(pieces)), [len(text) for text in pieces])
        first = np.diff(owner, prepend=-1) > 0
        total = np.zeros((len(pieces), self.dim), dtype=np.float32)
        for batch in plan_batches([row.length(self.config.k) for row in rows], self._batch_tokens):
            vectors = self._engine.embed([rows[i] for i in batch])
            weights = np.array([len(rows[i].text) for i in batch], dtype=np.float32)
            np.add.at(total, owner[batch], weights[:, None] * vectors)
            advance(int(first[batch].sum()))
        mean: FloatArray = total / np.linalg.norm(total, axis=1, keepdims=True)
        return mean

    def _pieces(
        self, encoded: tokenizers.Encoding, prompt_end: int, policy: Overlong
    ) -> list[list[int]]:
        """The token rows a text is read in: itself, unless it is over-long."""
        ids = encoded.ids
        if len(ids) <= self.max_length:
            return [ids]
        if policy == "error":
            raise InputError(
                f"a text has {len(ids)} tokens and the model reads {self.max_length}: shorten it, "
                "or choose overlong='truncate' or 'windows'"
            )
        if policy == "truncate":
            return [ids[: self.max_length]]
        # What stands before the text (BOS, prompt) stands before every window of it.
        head = sum(end <= prompt_end for _, end in encoded.offsets[: self.max_length // 2])
        size = self.max_length - head
        return [ids[:head] + ids[at : at + size] for at in range(head, len(ids), size)]

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

    def _windows(
        self, parts: Sequence[tuple[int, int]], length: int
    ) -> Iterator[tuple[list[int], tuple[int, int]]]:
        """Parts grouped into [start, stop) windows of the document, at most max_length long.

        A window ends with its last part and reaches as far back as it may: context comes
        before, in a causal model.
        """
        if length <= self.max_length:
            if parts:
                yield list(range(len(parts))), (0, length)
            return
        group: list[int] = []
        for index in sorted(range(len(parts)), key=lambda i: (parts[i][1], parts[i][0])):
            start, stop = parts[index]
            if stop - start > self.max_length:
                raise InputError(f"a span has {stop - start} tokens and the model reads "
                                 f"{self.max_length}: use shorter spans")  # fmt: skip
            first = min(start, *(parts[i][0] for i in group)) if group else start
            if group and stop - first > self.max_length:
                last = parts[group[-1]][1]
                yield group, (max(0, last - self.max_length), last)
                group = []
            group.append(index)
        if group:
            last = parts[group[-1]][1]
            yield group, (max(0, last - self.max_length), last)

    def _prompt_ids(self, prompt: Prompt, settings: Sampling) -> list[int]:
        ids = self._text.encode([prompt])[0].ids if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise InputError("the prompt is empty: give the model something to continue")
        for token in ids:
            if not 0 <= token < self._engine.vocabulary:
                raise InputError(f"the model has no token {token}: its tokens are 0 to "
                                 f"{self._engine.vocabulary - 1}")  # fmt: skip
        if len(ids) + settings.max_tokens > self.context:
            raise InputError(
                f"the prompt has {len(ids)} tokens and max_tokens is {settings.max_tokens}, more "
                f"than the model's context of {self.context}: shorten one of them"
            )
        return ids


# -- load ------------------------------------------------------------------------------------

_instances: WeakValueDictionary[Any, Gem] = WeakValueDictionary()
_locks: dict[Any, threading.Lock] = {}
_GEM_OPTIONS = ("overlong", "batch_tokens")


def load(
    model: str | Path | Gem = "gem-tiny",
    engine: EngineName = "auto",
    *,
    revision: str | None = None,
    k: int | None = None,
    **options: Any,
) -> Gem:
    """The shared instance of a model: the same model and options give the same object.

    model: "gem-tiny" (bundled), a local folder, or a hub name; a `Gem` is handed back.
    engine: what runs it.
    revision: of a hub model.
    k: special tokens for a model that is not GEM-trained (default 1); its embeddings are poor.
    options: `overlong` and `batch_tokens` (see `Gem`), and the engine's own.

    Each call takes a reference, `Gem.close` gives it back. Raises InputError if there is no such
    model or option, GemError if the architecture cannot give GEM embeddings.
    """
    if isinstance(model, Gem):
        if not model._retain():
            raise GemError("this Gem has been closed: load the model again")
        return model
    make = _engine_class(engine)
    _check_options(make, options)
    checkpoint = _with_k(open_checkpoint(model, revision), k)
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


def _with_k(checkpoint: Checkpoint, k: int | None) -> Checkpoint:
    if checkpoint.trained:
        if k not in (None, checkpoint.config.k):
            raise InputError(
                f"{checkpoint.name} was GEM-trained with k = {checkpoint.config.k}, not {k}: "
                "leave k out"
            )
        return checkpoint
    warnings.warn(
        f"{checkpoint.name} has not been GEM-trained: it generates as ever, but its "
        "embeddings are poor",
        stacklevel=3,
    )
    return Checkpoint(checkpoint.name, checkpoint.path, GemConfig(k=1 if k is None else k))


def _engine_class(engine: str) -> type[Engine]:
    if engine not in get_args(EngineName):
        known = get_args(EngineName)
        raise InputError(f"there is no engine {engine!r}{nearest(engine, known)}: use one of "
                         f"{', '.join(known)}")  # fmt: skip
    from gem_rag.engines.transformers import TransformersEngine

    return TransformersEngine


def _check_options(make: type[Engine], options: dict[str, Any]) -> None:
    known = [*list(inspect.signature(make).parameters)[1:], *_GEM_OPTIONS]
    for name in options:
        if name not in known:
            raise InputError(f"load() has no option {name!r}{nearest(name, known)}: it takes "
                             f"{', '.join(known)}")  # fmt: skip


def _checked_overlong(policy: Overlong) -> Overlong:
    if policy not in get_args(Overlong):
        raise InputError(f"overlong must be one of {', '.join(get_args(Overlong))}, not {policy!r}")
    return policy


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


def _sampling(settings: dict[str, Any]) -> Sampling:
    known = list(Sampling.__dataclass_fields__)
    for name in settings:
        if name not in known:
            raise InputError(f"there is no sampling setting {name!r}{nearest(name, known)}: use "
                             f"{', '.join(known)}")  # fmt: skip
    return Sampling(**settings)


def _token_span(
    encoded: tokenizers.Encoding, span: tuple[int, int], shift: int, length: int
) -> tuple[int, int]:
    """The tokens that stand for a character span of the document, which begins at `shift`."""
    start, end = span
    if not 0 <= start < end <= length:
        raise InputError(
            f"span ({start}, {end}) is not a non-empty part of a document of {length} characters"
        )
    inside = [
        i for i, (a, b) in enumerate(encoded.offsets) if b > start + shift and a < end + shift
    ]
    # A span from the very beginning takes BOS and the prompt with it, as a whole text does.
    return (0 if start == 0 else inside[0]), inside[-1] + 1
