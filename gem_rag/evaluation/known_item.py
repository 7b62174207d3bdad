"""Retrieval figures from scores.

Knows nothing about models or where scores come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RetrievalFigures:
    """Shares of queries whose right document is among the first 1 and 10, and mean 1 / rank."""

    recall_1: float
    recall_10: float
    mrr: float
    queries: int


def known_item(
    scores: npt.NDArray[np.floating], right: Sequence[int] | None = None
) -> RetrievalFigures:
    """Figures for queries with one right document each.

    scores: [queries, documents], larger is better. Ties count against the right document.
    right: for each query the column of its document; default document i for query i.
    """
    rows = np.arange(len(scores))
    own = scores[rows, rows if right is None else np.asarray(right)][:, None]
    rank = (scores >= own).sum(axis=1)
    return RetrievalFigures(
        recall_1=float((rank <= 1).mean()),
        recall_10=float((rank <= 10).mean()),
        mrr=float((1.0 / rank).mean()),
        queries=len(scores),
    )


def distinct(documents: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each text once, and for each place the column of its text.

    A document that answers many queries is one document: its copies would all tie with it.
    """
    columns: dict[str, int] = {}
    right = [columns.setdefault(document, len(columns)) for document in documents]
    return list(columns), right
