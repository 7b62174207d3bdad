"""Queries that teach nothing: those that say nothing, and those that repeat another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

from gem_rag.pairs.pair import Pair

_POINTING = re.compile(
    r"\b(?:this|that|the|these|above|given|following)\s+"
    r"(?:\w+\s+)?(?:text|passage|section|paragraph|document|article|example|excerpt|statement)s?\b",
    re.I,
)
_WORD = re.compile(r"\w+")


@cache
def _empty_words() -> frozenset[str]:
    # Imported late: it brings numba, after which vLLM does not start in the same process.
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    return frozenset(STOPWORDS_EN_PLUS) | {"explain", "main", "mean", "purpose", "use", "used"}


def says_something(query: str, least: int = 2) -> bool:
    """Whether a query can be understood without the passage it was made of.

    Args:
        query: The query.
        least: How many words must say something.
    """
    words = {word.lower() for word in _WORD.findall(query)}
    return len(words - _empty_words()) >= least and not _POINTING.search(query)


def without_duplicates(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The first pair of each query's words and document."""
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        key = normalized(pair.query), pair.document
        if key not in seen:
            seen.add(key)
            yield pair


def normalized(text: str) -> str:
    """A text's words in lower case."""
    return " ".join(_WORD.findall(text.lower()))
