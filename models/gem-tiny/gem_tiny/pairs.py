"""Pairs for GEM: a docstring's summary and its rest, a section's title and its text, a question and
the passage that answers; each with hard negatives.

Negatives of summaries and titles are mined: documents that BM25 takes for the pair's own. Those of
questions are the passages beside the right one, of the same module or of similar names.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gem_rag.evaluation.baselines import bm25_hits
from gem_tiny.corpus import Text, cut
from gem_tiny.question_rows import Row

_SHORTEST = 40  # letters of a document
_NEGATIVES = 2
_MINED = 12  # documents that BM25 finds for a query
_LONGEST = 1200  # characters of a document: more than the model is trained to read at once
_ALIKE = 0.6  # share of a document's words; one that has more of another's may be right as well

Pair = Mapping[str, Any]  # "query", "document" and a list of "negatives"


def summaries(texts: Iterable[Text]) -> Iterator[tuple[str, str]]:
    """(summary, rest) of docstrings that have both, each once."""
    found = (cut(text.text) for text in texts if text.kind == "docstring")
    return _each_once(pair for pair in found if pair)


def titles(texts: Iterable[Text]) -> Iterator[tuple[str, str]]:
    """(title, text) of documentation's sections, each once."""
    return _each_once((text.title, text.text) for text in texts if text.kind == "section")


def asked(rows: Iterable[Row]) -> Iterator[Pair]:
    """Question rows that can be answered, the other passages as negatives."""
    for row in rows:
        if row.number and len(row.passages) > 1:
            others = [p for n, p in enumerate(row.passages, start=1) if n != row.number]
            yield {
                "query": row.question,
                "document": row.passages[row.number - 1],
                "negatives": (others * _NEGATIVES)[:_NEGATIVES],
            }


def mined(pairs: Sequence[tuple[str, str]]) -> Iterator[Pair]:
    """Each pair with documents that BM25 finds for its query and that say something else."""
    documents = [document for _, document in pairs]
    words = [frozenset(document.lower().split()) for document in documents]
    nearest, _ = bm25_hits([query for query, _ in pairs], documents, _MINED)
    for own, (query, document) in enumerate(pairs):
        found = [int(i) for i in nearest[own] if not _alike(words[own], words[i])]
        # A query of words that nothing has finds too few: any others will do.
        found += [int(i) for i in np.random.default_rng(own).integers(len(pairs), size=_NEGATIVES)]
        yield {
            "query": query,
            "document": document,
            "negatives": [documents[i] for i in found[:_NEGATIVES]],
        }


def _each_once(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """A query or a document that was there before would be a wrong negative."""
    seen: set[str] = set()
    for query, document in pairs:
        keys = {query.lower(), " ".join(document.split()).lower()[:200]}
        if query and sum(map(str.isalpha, document)) >= _SHORTEST and seen.isdisjoint(keys):
            seen |= keys
            yield query, document[:_LONGEST]


def _alike(words: frozenset[str], others: frozenset[str]) -> bool:
    return len(words & others) >= _ALIKE * min(len(words), len(others))
