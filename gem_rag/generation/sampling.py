"""How to generate, and what comes back: `Sampling`, `Generation`, `TextStream`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from gem_rag.errors import InputError
from gem_rag.generation.grammars import checked, schema_grammar

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How to generate.

    max_tokens: most tokens to generate.
    temperature: 0 takes the likeliest token always; above, tokens are sampled.
    top_p: sample among the likeliest tokens that together have this probability.
    top_k: sample among this many likeliest tokens; 0 for all.
    stop: generation ends before the first of these strings, wherever token boundaries fall.
    seed: makes sampling repeatable.
    schema: a JSON schema that the text is held to while it is written.
    grammar: a Lark grammar (llguidance's) that it is held to instead.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: Sequence[str] = ()
    seed: int | None = None
    schema: dict[str, Any] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        stop = stop_strings(self.stop)
        object.__setattr__(self, "stop", stop)
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not self.temperature >= 0:
            raise InputError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 or more, not {self.top_k}")
        if self.schema is not None and not isinstance(self.schema, dict):
            raise InputError(f"schema must be a JSON schema as a dict, not {self.schema!r}")
        if self.grammar is not None and self.schema is not None:
            raise InputError("a text is held to a schema or to a grammar, not to both: give one")
        if not all(stop):
            raise InputError("a stop string may not be empty")

    @cached_property
    def constraint(self) -> str | None:
        """What llguidance holds the text to. Raises InputError if it cannot be followed."""
        grammar = self.grammar
        if self.schema is not None:
            grammar = schema_grammar(self.schema, self.max_tokens)
        return None if grammar is None else checked(grammar)


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """One stop string, several or none, as callers write them."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


@dataclass(frozen=True)
class Generation:
    """One generated text.

    text: without the stop string.
    tokens: ids of all generated tokens, those of a stop string too.
    finish_reason: "stop" (end of text or a stop string) or "length".
    prompt_tokens: tokens that were read.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int


G = TypeVar("G", bound=Generation)


class TextStream(Iterator[str], Generic[G]):
    """Pieces of a text as they come, and when all have come, what was generated.

    pieces: what `Gem.stream` or `Gem.stream_chat` gives.
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
