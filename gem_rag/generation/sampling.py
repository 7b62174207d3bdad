"""How to generate, and what comes back: `Sampling`, `Generation`, `TextStream`."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar

from gem_rag.errors import InputError
from gem_rag.generation.grammars import schema_grammar, validate_grammar
from gem_rag.generation.schemas import fault_of

FinishReason = Literal["stop", "length"]
DEFAULT_MAX_TOKENS = 256
MOST_LOGPROBS = 20


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments, all of them optional.

    Without `max_tokens`, up to 256 tokens are generated, or as many as the context leaves room for.
    """

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logprobs: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    schema: dict[str, Any] | None
    grammar: str | None


@dataclass(frozen=True)
class Sampling:
    """How to generate.

    Attributes:
        max_tokens: The most tokens to generate.
        temperature: 0 always takes the most likely token; above 0, tokens are sampled.
        top_p: Sample among the most likely tokens that together have this probability.
        top_k: Sample among this many of the most likely tokens; 0 for all.
        min_p: Sample among tokens that have at least this share of the likeliest one's probability.
        repetition_penalty: Above 1, tokens of the prompt and the text become less likely: a
            positive score is divided by it, a negative one multiplied.
        presence_penalty: Taken from the score of every token that the text has; from -2 to 2.
        frequency_penalty: Likewise, once for each time that the text has the token.
        logprobs: Give each token's log-probability, and those of this many of the likeliest tokens
            at its place: 0 to 20. None gives none.
        stop: Generation ends before the first of these strings, wherever token boundaries fall.
        seed: Makes sampling repeatable.
        schema: A JSON schema; only tokens that keep the text valid are generated. What a grammar
            cannot hold of it is checked at the end (`Generation.schema_error`).
        grammar: A Lark grammar (llguidance's dialect) instead of a schema.

    Raises:
        InputError: A value is out of range, or both a schema and a grammar are given.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    schema: dict[str, Any] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        stop = normalize_stop(self.stop)
        object.__setattr__(self, "stop", stop)
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not self.temperature >= 0:
            raise InputError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 or more, not {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p must be from 0 to 1, not {self.min_p}")
        if not self.repetition_penalty > 0:
            raise InputError(f"repetition_penalty must be above 0, not {self.repetition_penalty}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise InputError(f"{name} must be from -2 to 2, not {getattr(self, name)}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise InputError(f"logprobs must be from 0 to {MOST_LOGPROBS}, not {self.logprobs}")
        if self.schema is not None and not isinstance(self.schema, dict):
            raise InputError(f"schema must be a JSON schema as a dict, not {self.schema!r}")
        if self.grammar is not None and self.schema is not None:
            raise InputError("a text is held to a schema or to a grammar, not to both: give one")
        if not all(stop):
            raise InputError("a stop string may not be empty")

    @cached_property
    def constraint(self) -> str | None:
        """The grammar that decoding is constrained to, from `schema` or `grammar`, or None.

        Raises:
            InputError: llguidance cannot compile it.
        """
        grammar = self.grammar
        if self.schema is not None:
            grammar = f"start: {schema_grammar(self.schema)}"
        return None if grammar is None else validate_grammar(grammar)


def normalize_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple: callers write one string, several, or None."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was.

    Attributes:
        token: Its id.
        text: Its text by itself; U+FFFD for a part of a character.
        logprob: Its log-probability, in nats, before temperature and penalties; of a grammar, among
            the tokens that it allows.
        top: The likeliest tokens at its place, best first; as many as were asked for.
    """

    token: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Generation:
    """One generated text.

    Attributes:
        text: The text, without the stop string.
        tokens: Ids of all generated tokens, including those of a stop string.
        finish_reason: "stop" (end of text, or a stop string) or "length" (`max_tokens`).
        prompt_tokens: How many tokens the prompt had.
        schema_error: Why the text is not of the schema that was asked for: it was cut, or breaks
            what no grammar can hold. Empty if it is, or none was asked for.
        logprobs: Of each of `tokens`; empty if `Sampling.logprobs` is None.
        reused_tokens: How many of the prompt's first tokens had been read before, so that their
            keys and values were at hand. It makes no difference between two texts.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    schema_error: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    reused_tokens: int = field(default=0, compare=False)

    def checked(self, schema: dict[str, Any] | None) -> Self:
        """With `schema_error` for a schema."""
        if schema is None:
            return self
        error = fault_of(self.text, schema)
        if error and self.finish_reason == "length":
            error = f"the text was cut after {len(self.tokens)} tokens: raise max_tokens"
        return dataclasses.replace(self, schema_error=error)


def checked_stream(
    pieces: Generator[str, None, Generation], schema: dict[str, Any] | None
) -> Generator[str, None, Generation]:
    """A stream whose result is `Generation.checked`."""
    return (yield from pieces).checked(schema)


G = TypeVar("G", bound=Generation)


class TextStream(Iterator[str], Generic[G]):
    """Iterates over the pieces of a streamed text and keeps the result.

    Args:
        pieces: The generator that `Gem.stream` or `Gem.stream_chat` returns.

    Attributes:
        generation: The complete result; set once the iterator is exhausted.
    """

    generation: G

    def __init__(self, pieces: Generator[str, None, G]) -> None:
        self._pieces = pieces

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self.generation = end.value
            raise

    def reading(self) -> Generator[str, None, None]:
        """The pieces; closing this generator ends the text."""
        with closing(self._pieces):
            yield from self
