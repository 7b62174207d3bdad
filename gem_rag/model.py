"""`Gem`, one shared instance that embeds and generates.

`Gem` turns texts into token ids (prompts, long texts, batches) and leaves the computing to an
engine. Indexes, files and other frameworks are built on top of it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, get_args

import numpy as np

from gem_rag._utils.deprecation import renamed_keyword, warn_renamed
from gem_rag._utils.progress import progress_bar
from gem_rag._utils.suggestions import check_choice, check_known
from gem_rag.core.arrays import FloatArray, check_finite
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.config import GemConfig
from gem_rag.core.layout import Row, plan_batches
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.core.truncation import (
    Truncation,
    prefix_length,
    token_spans,
    truncate_or_split,
    window_rows,
)
from gem_rag.engines.engine import Engine
from gem_rag.errors import GemError, InputError
from gem_rag.generation.answer_prompt import answer_head
from gem_rag.generation.chat import (
    PLAIN_STOP,
    Message,
    normalize,
    response_schema,
    tokenize_conversation,
    without_question,
)
from gem_rag.generation.reasoning import Reasoning
from gem_rag.generation.replies import ChatReply
from gem_rag.generation.sampling import (
    Generation,
    Sampling,
    SamplingOptions,
    checked_stream,
    normalize_stop,
)
from gem_rag.generation.tools import Tool, Tools, calls_since_user

if TYPE_CHECKING:
    import tokenizers

Prompt = Sequence[int] | str

_TEXTS_PER_ROUND = 8192  # tokenized and sorted together: bounds memory, keeps padding low


class Gem:
    """One set of weights that embeds and generates; made by `load`, safe to use from many threads.

    Attributes:
        config: The checkpoint's `GemConfig`.
        dim: Length of an embedding.
        max_length: The most tokens of one text, its prompt included, in one embedding pass.
        truncation: What happens to longer texts unless a call says otherwise: "truncate" embeds
            the beginning and warns once, "windows" averages over windows that cover the text,
            "error" raises.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        *,
        truncation: Truncation = "truncate",
        batch_tokens: int | None = None,
    ) -> None:
        check_choice("truncation", truncation, get_args(Truncation))
        self._checkpoint = checkpoint
        self._engine_or_none: Engine | None = engine
        self.config: GemConfig = checkpoint.config
        self.dim = engine.dim
        self.max_length = self.config.effective_max_length(engine.max_text_tokens)
        self.truncation = truncation
        self._batch_tokens = batch_tokens or engine.batch_tokens
        self._lock = threading.Lock()
        self._references = 0
        self._fingerprint: str | None = None
        self._truncation_warned = False

    # -- embedding ---------------------------------------------------------------------------

    @renamed_keyword("overlong", "truncation")
    def embed_queries(
        self, texts: Sequence[str], *, truncation: Truncation | None = None, progress: bool = False
    ) -> FloatArray:
        """Embed questions.

        Args:
            texts: The questions; the model's query prompt is put before each.
            truncation: What happens to texts beyond `max_length`; default the instance's setting.
            progress: Whether to show a progress bar.

        Returns:
            Unit vectors in the order of the texts: float32 [n, dim].

        Raises:
            InputError: A text is empty, or too long under "error".
        """
        return self._embed(texts, self.config.prompts["query"], truncation, progress)

    @renamed_keyword("overlong", "truncation")
    def embed_documents(
        self, texts: Sequence[str], *, truncation: Truncation | None = None, progress: bool = False
    ) -> FloatArray:
        """Embed passages; as `embed_queries`, with the model's document prompt."""
        return self._embed(texts, self.config.prompts["document"], truncation, progress)

    def embed_chunks(self, document: str, spans: Sequence[tuple[int, int]]) -> FloatArray:
        """Embed parts of a document, each in the context of what precedes it.

        One forward pass embeds all of them: the special tokens of each part are observers that see
        its tokens, and no text token sees them. A document longer than `max_length` is read in
        windows that end with their parts.

        Args:
            document: The whole text.
            spans: [start, end) characters of each part.

        Returns:
            Unit vectors in the order of the spans: float32 [n, dim].

        Raises:
            InputError: A span is empty, outside the document, or longer than `max_length`.
        """
        return self.embed_chunks_batch([(document, spans)])

    def embed_chunks_batch(
        self, documents: Sequence[tuple[str, Sequence[tuple[int, int]]]]
    ) -> FloatArray:
        """As `embed_chunks`, of many documents together: one vector for each span, in order."""
        prompt = self.config.prompts["document"]
        texts = [document for document, _ in documents]
        encodings = self._tokenizer.encode_prompted(prompt, texts)
        rows: list[Row] = []
        places: list[int] = []  # of the rows' vectors, among all spans
        first = 0
        for encoding, (document, spans) in zip(encodings, documents, strict=True):
            parts = token_spans(encoding, spans, len(prompt), len(document))
            head = prefix_length(encoding, prompt)
            for indices, row in window_rows(encoding.ids, parts, head, self.max_length):
                rows.append(row)
                places += [first + index for index in indices]
            first += len(spans)
        vectors = np.empty((first, self.dim), dtype=np.float32)
        starts = np.cumsum([0, *(len(row.spans) for row in rows)])
        for batch, embedded in self._embed_batches(rows):
            found = [place for i in batch for place in places[starts[i] : starts[i + 1]]]
            vectors[found] = embedded
        check_finite(
            vectors, [text[start:end] for text, spans in documents for start, end in spans]
        )
        return vectors

    def embed_tokens(self, token_ids: Sequence[Sequence[int]]) -> FloatArray:
        """Embed texts given as token ids, as they are: no prompt is added, nothing is truncated.

        Args:
            token_ids: Token ids of each text, at most `max_length` of them.

        Returns:
            Unit vectors in the order of the texts: float32 [n, dim].
        """
        _check_tokens(token_ids, token_ids)
        rows = [Row.whole(ids) for ids in token_ids]
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        for batch, embedded in self._embed_batches(rows):
            vectors[batch] = embedded
        return vectors

    # -- tokens ------------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        """How many tokens the model reads for a text, including those its tokenizer adds."""
        return self._tokenizer.count_tokens(text)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a plain text, as `generate` reads it."""
        return self._tokenizer.encode([text])[0].ids

    def tokenize_document(self, text: str) -> list[int]:
        """Token ids that a passage is embedded from, after the model's document prompt."""
        return self._tokenizer.encode_prompted(self.config.prompts["document"], [text])[0].ids

    def tokenize_query(self, text: str) -> list[int]:
        """Token ids that a question is embedded from, after the model's query prompt."""
        return self._tokenizer.encode_prompted(self.config.prompts["query"], [text])[0].ids

    def tokenize_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, as `chat` reads it; raises what `chat` raises."""
        offered = Tools(tools, template=self._tokenizer.chat_template)
        return tokenize_conversation(self._tokenizer, messages, offered, chat_template_kwargs or {})

    @property
    def max_document_tokens(self) -> int:
        """The most tokens of a passage in one embedding pass: `max_length` without the document
        prompt."""
        return self.max_length - len(self.tokenize_document("")) + self.count_tokens("")

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The model's tokenizer, which reads everything as plain text; for text splitters."""
        return self._tokenizer.plain_backend

    @property
    def hf_tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the checkpoint, chat template included."""
        return self._tokenizer.hf_tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._tokenizer.chat_template)

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its continuation together."""
        return self._engine.context_length

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._engine.vocab_size

    @property
    def num_generating(self) -> int:
        """How many texts are being generated, or wait for it."""
        return self._engine.num_generating

    # -- generating --------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Prompt], **sampling: Unpack[SamplingOptions]
    ) -> list[Generation]:
        """Continue prompts.

        Args:
            prompts: Plain texts, in which special-token names and chat markers are plain text too;
                or token ids.
            **sampling: The fields of `Sampling`.

        Returns:
            One `Generation` for each prompt, in order.

        Raises:
            InputError: A prompt is empty, or does not fit the context together with `max_tokens`.
        """
        if isinstance(prompts, str):
            raise InputError("generate() takes a list of prompts, not one string: put it in a list")
        ids = [self._prompt_ids(prompt) for prompt in prompts]
        settings = self._sampling(sampling, ids)
        found = self._engine.generate(ids, settings) if ids else []
        return [generation.checked(settings.schema) for generation in found]

    def stream(
        self, prompt: Prompt, **sampling: Unpack[SamplingOptions]
    ) -> Generator[str, None, Generation]:
        """Continue one prompt piece by piece.

        Args:
            prompt: As for `generate`, which raises the same errors.
            **sampling: The fields of `Sampling`.

        Returns:
            A generator of pieces of text; its return value is the `Generation` (see `TextStream`).
        """
        ids = self._prompt_ids(prompt)
        settings = self._sampling(sampling, [ids])
        return checked_stream(self._engine.stream(ids, settings), settings.schema)

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        response_format: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> ChatReply:
        """Answer a conversation, by the model's own chat template, or plainly without one.

        Args:
            messages: {"role": ..., "content": ...} in order, in OpenAI's form, tool calls and their
                results included. Chat markers inside contents are plain text.
            tools: {"type": "function", "function": {"name", "description", "parameters"}} each; a
                call always follows the JSON schema in "parameters", whatever the model.
            tool_choice: "auto", "any", "none", or a tool's name.
            response_format: Of an answer, in OpenAI's form: "json_object", or "json_schema" with a
                schema; `schema` says the same. Tools may be called beside it.
            chat_template_kwargs: What the chat template takes beside messages and tools, such as
                Qwen3's `enable_thinking`.
            parallel_tool_calls: Whether a reply may have several calls, of a model whose template
                shows tools; of another it has one, and after the result the model may go on.
            **sampling: The fields of `Sampling`.

        Returns:
            The reply: text, or tool calls. A call that `max_tokens` cuts, or that breaks a part of
            its tool's schema that no grammar holds, is among `invalid_tool_calls`.

        Raises:
            InputError: The messages or tools are not of this form, the model's template refuses
                them, or they do not fit its context.
        """
        [reply] = self.sample_replies(
            messages, 1, tools, tool_choice, response_format, chat_template_kwargs,
            parallel_tool_calls, **sampling,
        )  # fmt: skip
        return reply

    def sample_replies(
        self,
        messages: Sequence[Message],
        n: int,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        response_format: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> list[ChatReply]:
        """As `chat`, n times, in one batch: replies differ if `temperature` is above 0."""
        offered, ids, settings = self._prepare_chat(
            messages, tools, tool_choice, response_format, chat_template_kwargs,
            parallel_tool_calls, sampling,
        )  # fmt: skip
        replies = [offered.parse_reply(one) for one in self.generate([ids] * n, **settings)]
        again = [place for place, reply in enumerate(replies) if offered.repeats(reply)]
        if again:
            settings["grammar"] = offered.grammar()
            answers = self.generate([ids] * len(again), **settings)
            for place, answer in zip(again, answers, strict=True):
                replies[place] = offered.parse_reply(answer)
        return replies

    def stream_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        response_format: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> Generator[str, None, ChatReply]:
        """As `chat`, piece by piece; tool calls and reasoning come with the generator's return
        value."""
        offered, ids, settings = self._prepare_chat(
            messages, tools, tool_choice, response_format, chat_template_kwargs,
            parallel_tool_calls, sampling,
        )  # fmt: skip
        pieces = self.stream(ids, **settings)

        def reply() -> Generator[str, None, ChatReply]:
            first = yield from offered.parse_stream(pieces)
            if not offered.repeats(first):
                return first
            settings["grammar"] = offered.grammar()
            return (yield from offered.parse_stream(self.stream(ids, **settings)))

        return reply()

    def _prepare_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        tool_choice: str,
        response_format: Mapping[str, Any] | None,
        template_kwargs: Mapping[str, Any] | None,
        parallel: bool,
        sampling: SamplingOptions,
    ) -> tuple[Tools, list[int], SamplingOptions]:
        """The tools that are offered, the prompt, and how to generate."""
        if (schema := response_schema(response_format)) is not None:
            if sampling.get("schema") is not None:
                raise InputError("response_format and schema say the same: give one of them")
            sampling = {**sampling, "schema": schema}
        messages, options = normalize(messages), template_kwargs or {}
        template, tokenizer = self._tokenizer.chat_template, self._tokenizer
        offered = Tools(
            tools, tool_choice, template, sampling.get("schema"), parallel,
            calls_since_user(messages),
        )  # fmt: skip
        ids = tokenize_conversation(tokenizer, messages, offered, options)
        offered.reasoning = Reasoning.of(template, tokenizer.hf_tokenizer.decode(ids[-16:]))
        if not self.has_chat_template:
            sampling = {**sampling, "stop": (*normalize_stop(sampling.get("stop")), *PLAIN_STOP)}
        if openings := offered.openings():
            unasked = without_question(messages)
            usual = tokenize_conversation(tokenizer, unasked, offered, options)
            pairs = [(prompt, opening) for prompt in (ids, usual) for opening in openings]
            asked, anyway = self.score_pairs(pairs).reshape(2, -1)
            offered.choose(asked - anyway)
        if offered.constrains:
            sampling = {**sampling, "schema": None, "grammar": offered.grammar()}
        return offered, ids, sampling

    def answer_prefix(self, passage: str) -> list[int]:
        """Token ids that an answer's prompt begins with if it has a passage first: its head (see
        `gem_rag.generation.answer_prompt.answer_head`) and the passage. One or two at the end may
        differ, where the tokenizer merges it with what follows.

        Raises:
            InputError: As `answer_head`.
        """
        head = answer_head(self._tokenizer, self.config)
        return self._tokenizer.encode_prompted(head, [passage])[0].ids

    def use_prefixes(self, folder: Path) -> bool:
        """Look in a folder, too, for keys and values that prompts begin with; see
        `Engine.use_prefixes`."""
        return self._engine.use_prefixes(folder)

    def keep_prefixes(self, prompts: Sequence[Sequence[int]], folder: Path, max_bytes: int) -> int:
        """Read prompts and keep their keys and values in a folder; see `Engine.keep_prefixes`."""
        fitting = [ids for ids in prompts if len(ids) < self.context_length]
        return self._engine.keep_prefixes(fitting, folder, max_bytes)

    def score(self, prompt: Prompt, continuations: Sequence[str]) -> FloatArray:
        """Score how well each text continues a prompt.

        Args:
            prompt: As for `generate`.
            continuations: The texts to score.

        Returns:
            The mean log-probability of each text's tokens, in nats: float32 [n].

        Raises:
            InputError: A continuation is empty, or does not fit the context.
        """
        ids = self._prompt_ids(prompt)
        return self.score_pairs([(ids, text) for text in continuations])

    def score_pairs(self, pairs: Sequence[tuple[Prompt, str]]) -> FloatArray:
        """Score how well texts continue prompts of their own, all together.

        Args:
            pairs: A prompt, as for `generate`, and the text to score after it. What all prompts
                begin with is read once where the engine can.

        Returns:
            The mean log-probability of each text's tokens, in nats: float32 [n].

        Raises:
            InputError: A prompt or text is empty, or the two do not fit the context.
        """
        tokens = [self._continuation_ids(prompt, text) for prompt, text in pairs]
        return self._engine.score(tokens)

    def _continuation_ids(self, prompt: Prompt, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of a text after it, which fit the context together."""
        ids, own = self._prompt_ids(prompt), self._tokenizer.encode_continuation(text)
        if not own or len(ids) + len(own) > self.context_length:
            raise InputError(
                f"{text[:60]!r} has {len(own)} tokens after a prompt of {len(ids)}, and the "
                f"model's context is {self.context_length}: give it from 1 to what fits"
            )
        return ids, own

    def language_model(self) -> AbstractContextManager[Any]:
        """The plain causal language model, for libraries that measure or inspect one.

        It is what `generate` runs: special tokens and adapters act in embedding passes only. Other
        threads wait to generate until the block ends; generating inside the block deadlocks.

        Raises:
            InputError: The engine keeps its weights to itself (vLLM).
        """
        return self._engine.language_model()

    # -- identity and lifetime ---------------------------------------------------------------

    @property
    def name(self) -> str:
        """What `load` finds the model by: a bundled or hub name, or an absolute path."""
        return self._checkpoint.name

    @property
    def engine_name(self) -> str:
        """What runs the model: "transformers" or "vllm"."""
        return self._engine.name

    @property
    def dtype(self) -> str:
        """What the model computes in, as torch names it: vectors of another one differ a little."""
        return self._engine.dtype

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that identify the vectors this model gives; see `Checkpoint`."""
        with self._lock:
            if self._fingerprint is None:
                self._fingerprint = self._checkpoint.fingerprint()
            return self._fingerprint

    def close(self) -> None:
        """Release one reference; releasing the last one frees the weights."""
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
    def _tokenizer(self) -> SafeTokenizer:
        return self._engine.tokenizer

    def _retain(self) -> bool:
        """Take a reference, unless the weights are gone."""
        with self._lock:
            self._references += self._engine_or_none is not None
            return self._engine_or_none is not None

    # -- texts to token rows -----------------------------------------------------------------

    def _embed(
        self, texts: Sequence[str], prompt: str, truncation: Truncation | None, progress: bool
    ) -> FloatArray:
        _check_texts(texts)
        truncation = truncation or self.truncation
        check_choice("truncation", truncation, get_args(Truncation))
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with progress_bar("embedding", len(texts), progress) as advance:
            for start in range(0, len(texts), _TEXTS_PER_ROUND):
                part = texts[start : start + _TEXTS_PER_ROUND]
                encodings = self._tokenizer.encode_prompted(prompt, part)
                _check_tokens([e.ids for e in encodings], texts, start)
                if truncation == "truncate":
                    self._warn_if_truncated(max(len(e) for e in encodings))
                windows = [
                    truncate_or_split(e, prompt, self.max_length, truncation) for e in encodings
                ]
                vectors[start : start + len(part)] = self._embed_windows(windows, advance)
        check_finite(vectors, texts)
        return vectors

    def _embed_windows(
        self, texts: Sequence[list[list[int]]], advance: Callable[[int], None]
    ) -> FloatArray:
        """One vector for each text: the mean of its windows', weighted by their tokens."""
        rows = [Row.whole(window) for text in texts for window in text]
        owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        first = np.diff(owner, prepend=-1) > 0
        total = np.zeros((len(texts), self.dim), dtype=np.float32)
        for batch, vectors in self._embed_batches(rows):
            weights = np.array([len(rows[i].text) for i in batch], dtype=np.float32)
            np.add.at(total, owner[batch], weights[:, None] * vectors)
            advance(int(first[batch].sum()))
        mean: FloatArray = total / np.linalg.norm(total, axis=1, keepdims=True)
        return mean

    def _embed_batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], FloatArray]]:
        """Batches of whole rows, as their numbers, and their vectors."""
        lengths = [row.length(self.config.k) for row in rows]
        batches = list(plan_batches(lengths, self._batch_tokens))
        chosen = ([rows[i] for i in batch] for batch in batches)
        yield from zip(batches, self._engine.embed_batches(chosen), strict=True)

    def _warn_if_truncated(self, longest: int) -> None:
        if longest <= self.max_length:
            return
        with self._lock:
            warned, self._truncation_warned = self._truncation_warned, True
        if not warned:
            warnings.warn(
                f"a text has {longest} tokens and only its first {self.max_length} are embedded; "
                "split it, or use truncation='windows' (said once)",
                stacklevel=5,
            )

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise InputError("the prompt is empty: give the model something to continue")
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InputError(
                    f"the model has no token {token}: its tokens are 0 to {self.vocab_size - 1}"
                )
        return ids

    def _sampling(self, options: SamplingOptions, prompts: Sequence[Sequence[int]]) -> Sampling:
        """Validated settings; without `max_tokens`, what the context leaves room for."""
        known = list(Sampling.__dataclass_fields__)
        check_known(options, known, "there is no sampling setting", f": use {', '.join(known)}")
        longest = max(map(len, prompts), default=0)
        fields: dict[str, Any] = dict(options)
        if fields.get("max_tokens") is None:
            room = self.context_length - longest
            fields["max_tokens"] = max(1, min(Sampling.max_tokens, room))
        sampling = Sampling(**fields)
        if longest + sampling.max_tokens > self.context_length:
            raise InputError(
                f"the prompt has {longest} tokens and max_tokens is {sampling.max_tokens}, more "
                f"than the model's context of {self.context_length}: shorten one of them"
            )
        return sampling

    # -- old names -----------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Deprecated: `tokenize`."""
        warn_renamed("Gem.encode", "Gem.tokenize")
        return self.tokenize(text)

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Deprecated: `tokenize_chat`."""
        warn_renamed("Gem.encode_chat", "Gem.tokenize_chat")
        return self.tokenize_chat(messages, tools)

    @property
    def context(self) -> int:
        """Deprecated: `context_length`."""
        warn_renamed("Gem.context", "Gem.context_length")
        return self.context_length

    @property
    def overlong(self) -> Truncation:
        """Deprecated: `truncation`."""
        warn_renamed("Gem.overlong", "Gem.truncation")
        return self.truncation


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InputError("texts must be a list of strings, not one string: put it in a list")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {index} is {type(text).__name__}, not a string")
        if not text.strip():
            raise InputError(f"text {index} is empty: leave it out")


def _check_tokens(rows: Sequence[Sequence[int]], texts: Sequence[object], start: int = 0) -> None:
    """Refuse texts that tokenizers drop all of, such as zero-width spaces."""
    for index, ids in enumerate(rows, start=start):
        if not ids:
            raise InputError(f"text {index} has no tokens ({texts[index]!r}): leave it out")
