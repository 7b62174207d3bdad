"""Answers judged without another model: by their words, their citations and a reference."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gem_rag.rag.answer import REFUSAL, Answer

# What models say in other words, where they cite nothing.
_REFUSED = re.compile(
    r"\b(do|does|did|is|are|can|could)(n't| not)\b.*"
    r"\b(answer|say|said|mention|contain|provide|know)|\bno (answer|information)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Judgement:
    """What is right about an answer.

    refused: it says that there is none.
    verbatim: its words stand in a passage that was read, one after another.
    matched: they hold the reference.
    supported: they hold the reference, and stand in a passage that answers.
    cited: the first passage it cites answers.
    """

    refused: bool
    verbatim: bool
    matched: bool
    supported: bool
    cited: bool


def judge(found: Answer, reference: str, right: Collection[int]) -> Judgement:
    """Compare an answer with the words that were wanted; letters' case and spaces do not count.

    reference: empty where nothing answers.
    right: numbers of the passages that answer, from 1.
    """
    words = plain(re.sub(r"\[\d+\]", " ", found.text))
    refused = plain(REFUSAL) in words or (not found.citations and bool(_REFUSED.search(words)))
    passages = [plain(hit.chunk.passage) for hit in found.hits]
    said = bool(words) and not refused
    matched = said and bool(reference) and plain(reference) in words
    return Judgement(
        refused=refused,
        verbatim=said and any(words in passage for passage in passages),
        matched=matched,
        supported=matched and any(words in passages[number - 1] for number in right),
        cited=bool(found.citations) and found.citations[0].number in right,
    )


def plain(text: str) -> str:
    """A text in lower case with single spaces."""
    return " ".join(text.lower().split())


def share(values: Sequence[bool]) -> float:
    """Of true ones; nan if there are none at all."""
    return sum(values) / len(values) if values else float("nan")
