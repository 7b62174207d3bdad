"""Every number of making pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from gem_rag._utils.suggestions import check_choice, check_known
from gem_rag.errors import InputError
from gem_rag.pairs.kinds import KINDS

Search = Literal["auto", "bm25", "model", "both"]
MAX_QUESTIONS, MAX_NEGATIVES = 5, 7


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    Attributes:
        questions: Questions that the model writes for a passage; 0 for pairs from structure alone.
        kinds: Their kinds, by turns.
        max_questions: The most questions altogether, of passages drawn at random; None for all.
        passage_tokens: The most tokens of a passage.
        context_tokens: The most tokens that a passage is read with, itself and those before it, as
            in an index with this setting; 0 for passages by themselves.
        round_trip: A question stays if its passage is among the first so many found for it.
        search: What finds passages, for the round trip and for negatives: "bm25", "model" (the
            model's own embeddings), "both" (either is enough), or "auto": both if the model is
            GEM-trained.
        negatives: Hard negatives of each query.
        first_rank: Negatives are drawn from these ranks of what is found, the first one...
        last_rank: ... and the last one.
        max_score: No negative scores above this share of the right passage's score.
        temperature: Of the questions.
        batch: Questions that are written at once.
        held_out: Share of the sections that no pair is made of, to measure on.
        seed: Of everything that is drawn.

    Raises:
        InputError: A value is out of range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    questions: int = 2
    kinds: tuple[str, ...] = tuple(KINDS)
    max_questions: int | None = None
    passage_tokens: int = 192
    context_tokens: int = 0
    round_trip: int = 10
    search: Search = "auto"
    negatives: int = 4
    first_rank: int = 5
    last_rank: int = 100
    max_score: float = 0.95
    temperature: float = 0.7
    batch: int = 64
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_range("questions", self.questions, 0, MAX_QUESTIONS)
        _check_range("negatives", self.negatives, 0, MAX_NEGATIVES)
        _check_range("passage_tokens", self.passage_tokens, 32, 2**20)
        if self.context_tokens:
            _check_range("context_tokens", self.context_tokens, self.passage_tokens, 2**20)
        _check_range("round_trip", self.round_trip, 1, 2**20)
        _check_range("first_rank", self.first_rank, 1, self.last_rank)
        _check_range("batch", self.batch, 1, 2**20)
        check_choice("search", self.search, ("auto", "bm25", "model", "both"))
        check_known(self.kinds, list(KINDS), "there is no kind of question")
        if self.questions and not self.kinds:
            raise InputError(f"kinds names no kind of question: give some of {', '.join(KINDS)}")


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{name} must be from {least} to {most}, not {value}")
