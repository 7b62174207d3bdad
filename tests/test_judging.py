"""Answers judged by words, citations and references."""

from __future__ import annotations

import math

import pytest

from gem_rag.documents.document import Chunk
from gem_rag.evaluation.judging import judge, share
from gem_rag.rag.answer import REFUSAL, Answer, Citation
from gem_rag.rag.hits import Hit

PASSAGES = ("# pump\nA pump moves  water\nthrough pipes.", "# lamp\nA lamp gives light.")
HITS = [Hit(Chunk(f"doc {n}", "", 0, len(p), p), 0.5) for n, p in enumerate(PASSAGES)]


def given(text: str, *numbers: int) -> Answer:
    return Answer(text, [Citation(n, "doc", (0, 1), "A") for n in numbers], HITS)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (given("A PUMP moves water [1]", 1), ["verbatim", "matched", "supported", "cited"]),
        (given("A pump moves water [2]", 2), ["verbatim", "matched", "supported"]),
        (given("pump", 1), ["verbatim", "cited"]),
        (given("A lamp gives light. [2]", 2), ["verbatim"]),
        (given("So a pump moves water.", 1), ["matched", "cited"]),
        (given(REFUSAL), ["refused"]),
        (given("The passages don't mention it."), ["refused"]),
        (given(""), []),
    ],
)
def test_what_is_right_about_an_answer(answer: Answer, right: list[str]) -> None:
    found = judge(answer, "pump moves\nwater", [1])
    assert [name for name, value in vars(found).items() if value] == right


def test_nothing_matches_where_nothing_answers() -> None:
    found = judge(given("A lamp gives light. [2]", 2), "", [])
    assert [name for name, value in vars(found).items() if value] == ["verbatim"]


def test_share() -> None:
    assert share([True, False, False, True]) == 0.5
    assert math.isnan(share([]))
