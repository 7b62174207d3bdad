"""BM25 and the model itself, in one form: queries to the documents found for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gem_rag.core.arrays import FloatArray, IntArray
from gem_rag.evaluation.baselines import bm25_hits
from gem_rag.model import Gem

_BLOCK = 1024  # queries that are compared at once


class Found(NamedTuple):
    """What was found, best first.

    Attributes:
        rows: Numbers of documents, int64 [queries, depth]; -1 where nothing more was found.
        scores: Theirs, float32 [queries, depth].
    """

    rows: IntArray
    scores: FloatArray

    def rank(self, row: int, document: int) -> int | None:
        """Where a document is among those found for a query, from 1; None if it is not."""
        where = np.flatnonzero(self.rows[row] == document)
        return int(where[0]) + 1 if len(where) else None


class Searcher(Protocol):
    """Finds documents."""

    def __call__(self, queries: Sequence[str], documents: Sequence[str], depth: int) -> Found:
        """The first `depth` documents for each query."""


def bm25(queries: Sequence[str], documents: Sequence[str], depth: int) -> Found:
    """As `Searcher`, by BM25; documents that share no word with a query are not found."""
    rows, scores = bm25_hits(queries, documents, depth)
    return Found(np.where(scores > 0, rows, -1), scores)


class ModelSearcher:
    """A model's own embeddings.

    Args:
        gem: The model.
        progress: Whether to show progress bars.
    """

    def __init__(self, gem: Gem, progress: bool = False) -> None:
        self._gem, self._progress = gem, progress

    def __call__(self, queries: Sequence[str], documents: Sequence[str], depth: int) -> Found:
        """As `Searcher`, by cosine."""
        of_documents = self._gem.embed_documents(
            documents, truncation="truncate", progress=self._progress
        )
        of_queries = self._gem.embed_queries(queries, truncation="truncate")
        depth = min(depth, len(documents))
        rows, scores = [], []
        for start in range(0, len(queries), _BLOCK):
            similar = of_queries[start : start + _BLOCK] @ of_documents.T
            best = np.argpartition(-similar, depth - 1, axis=1)[:, :depth]
            values = np.take_along_axis(similar, best, axis=1)
            order = np.argsort(-values, axis=1, kind="stable")
            rows.append(np.take_along_axis(best, order, axis=1))
            scores.append(np.take_along_axis(values, order, axis=1))
        return Found(np.concatenate(rows).astype(np.int64), np.concatenate(scores))


def found_again(
    queries: Sequence[str],
    documents: Sequence[str],
    right: Sequence[int],
    searchers: Sequence[Searcher],
    among: int,
) -> list[bool]:
    """The round trip: whether a query's own document is among the first that any searcher finds.

    Args:
        queries: Queries.
        documents: Documents.
        right: The number of each query's document.
        searchers: Any one is enough.
        among: How many.
    """
    again = [False] * len(queries)
    for search in searchers if queries else ():
        found = search(queries, documents, among)
        for number, document in enumerate(right):
            again[number] |= found.rank(number, document) is not None
    return again
