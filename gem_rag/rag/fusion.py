"""Rankings fused into one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_K = 60  # Cormack, Clarke and Buettcher, SIGIR 2009


def reciprocal_rank_fusion(*scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Fuse rankings of the same documents: the sum of 1 / (60 + rank) over all of them.

    Args:
        *scores: [queries, documents] each; higher is better. Of equal scores the first one ranks
            higher; a document of -inf was not found, and that ranking adds nothing to its score.

    Returns:
        Fused scores, [queries, documents].
    """
    return np.sum(
        [np.where(np.isneginf(each), 0, 1 / (_K + ranks(each))) for each in scores], axis=0
    )


def ranks(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The rank of every document, from 1: int64 of the scores' shape."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.argsort(order, axis=1) + 1


def fuse(*rankings: Sequence[int]) -> list[int]:
    """Fuse rankings of numbers, best first, that need not have the same: as
    `reciprocal_rank_fusion`. Of equal sums, what stands earlier in the first ranking comes first.
    """
    sums: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, number in enumerate(ranking, start=1):
            sums[number] += 1 / (_K + rank)
    return sorted(sums, key=lambda number: -sums[number])
