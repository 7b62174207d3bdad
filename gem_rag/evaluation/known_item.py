"""Retrieval with one right document for each query: recall and mean reciprocal rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures import RR, Success


@dataclass(frozen=True)
class RetrievalFigures:
    """Retrieval figures over queries.

    Attributes:
        recall_1: Share of queries whose right document is first.
        recall_10: Share of queries whose right document is among the first 10.
        mrr: Mean reciprocal rank of the right document.
        queries: How many queries there were.
    """

    recall_1: float
    recall_10: float
    mrr: float
    queries: int


def evaluate_known_items(
    scores: npt.NDArray[np.floating], right: Sequence[int] | None = None
) -> RetrievalFigures:
    """Figures for queries with one right document each, by ir_measures.

    Args:
        scores: [queries, documents]; higher is better. Ties count against the right document.
        right: For each query the column of its document; default document i for query i.
    """
    qrels = {str(query): {"right": 1} for query in range(len(scores))}
    run = {
        str(query): _ranking_down_to(rank)
        for query, rank in enumerate(right_ranks(scores, right).tolist())
    }
    figures = ir_measures.calc_aggregate([Success @ 1, Success @ 10, RR], qrels, run)
    return RetrievalFigures(
        recall_1=float(figures[Success @ 1]),
        recall_10=float(figures[Success @ 10]),
        mrr=float(figures[RR]),
        queries=len(scores),
    )


def right_ranks(
    scores: npt.NDArray[np.floating], right: Sequence[int] | None = None
) -> npt.NDArray[np.int64]:
    """The rank of each query's right document, from 1: int64 [queries].

    Args:
        scores: As for `evaluate_known_items`; `right` likewise.
    """
    columns = np.arange(len(scores)) if right is None else np.asarray(right)
    own = scores[np.arange(len(scores)), columns]
    return np.asarray((scores >= own[:, None]).sum(axis=1), np.int64)


def reciprocal_ranks(
    scores: npt.NDArray[np.floating], right: Sequence[int] | None = None
) -> npt.NDArray[np.float64]:
    """The reciprocals of `right_ranks`: float64 [queries]."""
    return 1 / right_ranks(scores, right)


def _ranking_down_to(rank: int) -> dict[str, float]:
    """The right document and those ranked above it: what is below changes no figure."""
    return {"right": 0.0, **{str(above): float(above) for above in range(1, rank)}}


def drop_duplicates(documents: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each text once, and for each position the column of its text.

    A document that answers many queries is one document: its copies would all tie with it.
    """
    columns: dict[str, int] = {}
    right = [columns.setdefault(document, len(columns)) for document in documents]
    return list(columns), right
