"""Queries that documents hold themselves: a title, a heading or a first sentence must find the text
below it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from gem_rag.pairs.pair import Pair
from gem_rag.pairs.passages import Passage

_NUMBER = re.compile(r"^(?:(?:chapter|section|part|appendix)\s+)?[\dA-Z]?[\d.]*[.)]\s+", re.I)
# A sentence that more text follows; not in a list, a table or a picture's place.
_SUMMARY = re.compile(r"([^\W\d_][^|]{20,200}?[.!?])\s+(?=\S)", re.S)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_MARKS = re.compile(r"[`*]+")
_MIN_LETTERS = 60  # below a summary
_LETTERS = 0.7  # the least share of a summary


def structure_pairs(passages: Sequence[Passage]) -> Iterator[Pair]:
    """Pairs of kinds "title", "heading" and "summary", in the order of the passages."""
    headings = Counter(p.headings[-1].lower() for p in passages if p.first and p.headings)
    titled: set[str] = set()
    for passage in passages:
        if passage.source not in titled:
            titled.add(passage.source)
            if passage.title and passage.title not in passage.headings:
                yield _pair(passage, _plain(passage.title), passage.text, "title")
        if passage.first and passage.headings:
            repeated = headings[passage.headings[-1].lower()] > 1
            yield _pair(passage, _heading(passage, repeated), passage.text, "heading")
        if parts := _split_summary(passage.text):
            yield _pair(passage, *parts, "summary")


def _split_summary(text: str) -> tuple[str, str] | None:
    """A text's first sentence and what follows it, if both say enough."""
    match = _SUMMARY.match(text)
    if match is None:
        return None
    summary = " ".join(_MARKS.sub("", _LINK.sub(r"\1", match[1])).split())
    whole = all(summary.count(one) == summary.count(other) for one, other in ("()", "[]"))
    letters = sum(map(str.isalpha, summary))
    rest = text[match.end() :]
    if whole and letters >= _LETTERS * len(summary) and letters >= _MIN_LETTERS // 3:
        return (summary, rest) if sum(map(str.isalpha, rest)) >= _MIN_LETTERS else None
    return None


def _heading(passage: Passage, repeated: bool) -> str:
    """The heading's words; one that stands elsewhere too says nothing without the one above it."""
    above = (passage.title, *passage.headings[:-1])[-1]
    words = _plain(passage.headings[-1])
    return f"{_plain(above)}: {words}" if repeated and above else words


def _plain(heading: str) -> str:
    """Without its number and marks."""
    return _NUMBER.sub("", _MARKS.sub("", _LINK.sub(r"\1", heading))) or heading


def _pair(passage: Passage, query: str, document: str, kind: str) -> Pair:
    return Pair(
        query, document.strip(), kind, passage.source, passage.section, context=passage.context
    )
