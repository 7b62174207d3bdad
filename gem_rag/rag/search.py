"""Which chunks of a commit are near a question: by vectors, by words, or by both fused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from gem_rag.core.arrays import FloatArray
from gem_rag.rag.commit import Commit
from gem_rag.rag.fusion import fuse
from gem_rag.rag.hits import Hit

Ranking = Literal["vectors", "words", "hybrid"]
_FUSED = 50  # chunks of each ranking, where two are fused


def search(
    commit: Commit, questions: Sequence[str], queries: FloatArray, k: int, ranking: Ranking
) -> list[list[Hit]]:
    """Search a commit.

    Args:
        commit: What to search.
        questions: The questions.
        queries: Their vectors, unit rows [questions, dim].
        k: How many chunks to return.
        ranking: What they are ranked by.

    Returns:
        For each question k hits of different texts, best first: as many candidates are ranked as
        that takes. By words there may be fewer.
    """
    candidates = 2 * k if ranking == "vectors" else max(2 * k, _FUSED)
    while True:
        ranked = _rank(commit, questions, queries, candidates, ranking)
        hits = [_drop_equal_texts(one)[:k] for one in ranked]
        if candidates >= len(commit.chunks) or all(len(one) == k for one in hits):
            return hits
        candidates *= 4


def _rank(
    commit: Commit,
    questions: Sequence[str],
    queries: FloatArray,
    candidates: int,
    ranking: Ranking,
) -> Iterator[list[Hit]]:
    nearest: list[list[tuple[str, float]]] = [[] for _ in questions]
    if ranking != "words":
        nearest = commit.store.search(queries, candidates)
    if ranking == "vectors":
        yield from ([_hit(commit, id, score) for id, score in found] for found in nearest)
        return
    ids = list(commit.chunks)
    rows, scores = commit.words.search(questions, candidates)
    for query, found, own_rows, own_scores in zip(queries, nearest, rows, scores, strict=True):
        with_words = [ids[row] for row in own_rows[own_scores > 0]]
        cosines = dict(found)
        chosen = fuse([id for id, _ in found], with_words)
        others = [id for id in chosen if id not in cosines]
        if others:
            found_otherwise = np.clip(commit.store.vectors(others) @ query, -1, 1).tolist()
            cosines |= dict(zip(others, found_otherwise, strict=True))
        yield [_hit(commit, id, cosines[id]) for id in chosen]


def _hit(commit: Commit, id: str, score: float) -> Hit:
    chunk = commit.chunks[id]
    return Hit(chunk, score, commit.documents[chunk.source].document.place(chunk.start))


def _drop_equal_texts(hits: Sequence[Hit]) -> list[Hit]:
    first: dict[str, Hit] = {}
    for hit in hits:
        first.setdefault(hit.chunk.text, hit)
    return list(first.values())
