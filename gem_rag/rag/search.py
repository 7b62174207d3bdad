"""Which chunks of a commit are near a question: by vectors, by words, or by both fused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from gem_rag._utils.suggestions import check_choice
from gem_rag.core.arrays import FloatArray
from gem_rag.documents.patterns import Patterns
from gem_rag.errors import InputError
from gem_rag.rag.commit import Commit
from gem_rag.rag.fusion import fuse
from gem_rag.rag.hits import Hit

Ranking = Literal["vectors", "words", "hybrid"]
_FUSED = 50  # chunks of each ranking, where two are fused
_POOL = 4  # times k hits, that diverse ones are chosen from


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        ranking: By cosines of "vectors"; by "words" (BM25), where only chunks are found that share
            some; or "hybrid", by reciprocal ranks in both. The first search by words makes an
            index of them, in memory.
        sources: Patterns as in a `.gitignore` file: only documents whose file, or name for those
            made in Python, one of them matches. Empty for all.
        min_score: Only chunks whose cosine with the question is at least this.
        diversity: From 0 to 1, how much hits that are like earlier ones are put behind others
            (maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998).

    Raises:
        InputError: A setting is out of range.
    """

    ranking: Ranking = "vectors"
    sources: Sequence[str] = ()
    min_score: float | None = None
    diversity: float = 0.0

    def __post_init__(self) -> None:
        check_choice("ranking", self.ranking, get_args(Ranking))
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise InputError(f"min_score must be a cosine, from -1 to 1, not {self.min_score}")
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity must be from 0 to 1, not {self.diversity}")

    @property
    def least(self) -> float:
        """The least score of a hit."""
        return -np.inf if self.min_score is None else self.min_score

    def selects(self, commit: Commit) -> Callable[[Hit], bool]:
        """Whether a hit may be returned."""
        patterns = Patterns.of(self.sources) if self.sources else None

        def select(hit: Hit) -> bool:
            if hit.score < self.least or patterns is None:
                return hit.score >= self.least
            document = commit.documents[hit.chunk.source].document
            return patterns.match_above(document.file or document.source)

        return select


def search(
    commit: Commit,
    questions: Sequence[str],
    queries: FloatArray,
    k: int,
    settings: SearchSettings,
) -> list[list[Hit]]:
    """Search a commit.

    Args:
        commit: What to search.
        questions: The questions.
        queries: Their vectors, unit rows [questions, dim].
        k: How many chunks to return.
        settings: How.

    Returns:
        For each question k hits of different texts, best first: as many candidates are ranked as
        that takes. There are fewer where fewer are selected, or share a word.
    """
    select, ranking = settings.selects(commit), settings.ranking
    wanted = _POOL * k if settings.diversity else k
    candidates = 2 * wanted if ranking == "vectors" else max(2 * wanted, _FUSED)
    while True:
        ranked = list(_rank(commit, questions, queries, candidates, ranking))
        hits = [_drop_equal_texts(filter(select, one))[:wanted] for one in ranked]
        if candidates >= len(commit.chunks) or all(len(one) == wanted for one in hits):
            break
        if ranking == "vectors" and all(
            one[-1].score < (settings.min_score or -1) for one in ranked
        ):
            break  # what comes later scores lower still
        candidates *= 4
    if not settings.diversity:
        return hits
    return [_diverse(commit, one, k, settings.diversity) for one in hits]


def _diverse(commit: Commit, hits: list[Hit], k: int, diversity: float) -> list[Hit]:
    """k hits, each the best by its score less its greatest cosine with those before it."""
    if not hits:
        return []
    vectors = commit.store.vectors([hit.chunk.id for hit in hits])
    relevance = (1 - diversity) * np.array([hit.score for hit in hits])
    alike = np.zeros(len(hits))
    chosen: list[int] = []
    while len(chosen) < min(k, len(hits)):
        value = relevance - diversity * alike
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        with_last = vectors @ vectors[chosen[-1]]
        alike = with_last if len(chosen) == 1 else np.maximum(alike, with_last)
    return [hits[number] for number in chosen]


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


def _drop_equal_texts(hits: Iterable[Hit]) -> list[Hit]:
    first: dict[str, Hit] = {}
    for hit in hits:
        first.setdefault(hit.chunk.text, hit)
    return list(first.values())
