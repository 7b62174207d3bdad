"""Rankings fused into one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_WORDS = 0.6  # weight of words beside vectors (`python benchmarks/fusion.py` measures others)
_K = 60  # Cormack, Clarke and Buettcher, SIGIR 2009


def fuse_scores(
    cosines: npt.NDArray[np.floating], words: npt.NDArray[np.floating], *, weight: float = _WORDS
) -> npt.NDArray[np.float64]:
    """Fuse what vectors and words say of the same documents: a weighted sum of shares.

    How far apart scores are tells more than their order, which is all that reciprocal ranks know
    (Bruch, Gai and Ingber, ACM TOIS 2023). A question in other words than the documents' own is
    left to the vectors, since no document has much of it; a name or an error code is not.

    Args:
        cosines: Of query and document: [queries, documents]. They count as shares of the query's
            best.
        words: BM25 as a share of what all the query's words are worth (`Commit.search_words`), of
            the same shape.
        weight: Of words, where that of vectors is 1.

    Returns:
        Fused scores, [queries, documents].
    """
    best = cosines.max(axis=1, keepdims=True, initial=0).astype(np.float64)
    return cosines / np.where(best > 0, best, 1) + weight * words


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
