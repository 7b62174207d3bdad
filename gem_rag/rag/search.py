"""Which chunks of a commit are near a question: by vectors, by words, or by both fused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypedDict, get_args

import numpy as np

from gem_rag._utils.suggestions import check_choice
from gem_rag.core.arrays import FloatArray
from gem_rag.documents.patterns import Patterns
from gem_rag.errors import InputError
from gem_rag.rag.commit import Commit, Place
from gem_rag.rag.conditions import Where, check_where, satisfies
from gem_rag.rag.fusion import fuse_scores
from gem_rag.rag.hits import Hit

Ranking = Literal["vectors", "words", "hybrid"]
DEFAULT_RANKING: Ranking = "hybrid"
_FUSED = 50  # chunks of each ranking, where two are fused
_POOL = 4  # times k hits, that diverse ones are chosen from


class SearchOptions(TypedDict, total=False):
    """The fields of `SearchSettings` as keyword arguments, all of them optional."""

    ranking: Ranking
    sources: Sequence[str]
    where: Where
    min_score: float | None
    diversity: float
    reranked: int


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        ranking: By "hybrid", scores of vectors and of words fused; or by one of them, cosines of
            "vectors", or "words" (BM25), where only chunks are found that share some.
        sources: Patterns as in a `.gitignore` file: only documents whose file, or name for those
            made in Python, one of them matches. Empty for all.
        where: Conditions on documents' metadata, all of which must hold: a value, a list of values,
            or {"gte": value} and the like for each field (see `satisfies`); or a function of the
            metadata.
        min_score: Only chunks whose cosine with the question is at least this.
        diversity: From 0 to 1, how much hits that are like earlier ones are put behind others
            (maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998).
        reranked: How many of the best hits the model reads together with the question, to put them
            in a better order (see `rerank`); 0 for none, since it takes a pass for each.

    Raises:
        InputError: A setting is out of range.
    """

    ranking: Ranking = DEFAULT_RANKING
    sources: Sequence[str] = ()
    where: Where = field(default_factory=dict)
    min_score: float | None = None
    diversity: float = 0.0
    reranked: int = 0

    def __post_init__(self) -> None:
        check_choice("ranking", self.ranking, get_args(Ranking))
        check_where(self.where)
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise InputError(f"min_score must be a cosine, from -1 to 1, not {self.min_score}")
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity must be from 0 to 1, not {self.diversity}")
        if self.reranked < 0:
            raise InputError(f"reranked must be a number from 0, not {self.reranked}")

    @property
    def least(self) -> float:
        """The least score of a hit."""
        return -np.inf if self.min_score is None else self.min_score

    def make_filter(self) -> Callable[[_Found], bool]:
        """Whether what was found may be a hit."""
        patterns = Patterns.of(self.sources) if self.sources else None

        def select(found: _Found) -> bool:
            place = found.place
            return (
                found.score >= self.least
                and (patterns is None or patterns.match_above(place.file or place.source))
                and (not self.where or satisfies(json.loads(place.metadata), self.where))
            )

        return select


class _Found(NamedTuple):
    """A chunk that may become a hit."""

    chunk: int
    place: Place
    score: float


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
    found = _find(commit, questions, queries, k, settings)
    if settings.diversity:
        found = [_diverse(commit, one, k, settings.diversity) for one in found]
    return [[commit.hit(one.place, one.score) for one in ranked] for ranked in found]


def _find(
    commit: Commit,
    questions: Sequence[str],
    queries: FloatArray,
    k: int,
    settings: SearchSettings,
) -> list[list[_Found]]:
    """k different texts for each question, or more to choose diverse ones from."""
    select, ranking = settings.make_filter(), settings.ranking
    wanted = _POOL * k if settings.diversity else k
    candidates = 2 * wanted if ranking == "vectors" else max(2 * wanted, _FUSED)
    while True:
        ranked = list(_rank(commit, questions, queries, candidates, ranking))
        found = [_drop_equal_texts(filter(select, one))[:wanted] for one in ranked]
        if candidates >= len(commit.vectors) or all(len(one) == wanted for one in found):
            return found
        if ranking == "vectors" and all(one and one[-1].score < settings.least for one in ranked):
            return found  # what comes later scores lower still
        candidates *= 4


def _rank(
    commit: Commit,
    questions: Sequence[str],
    queries: FloatArray,
    candidates: int,
    ranking: Ranking,
) -> Iterator[list[_Found]]:
    nearest: list[list[tuple[int, float]]] = [[] for _ in questions]
    if ranking != "words":
        nearest = commit.store.search(queries, candidates)
    for question, query, found in zip(questions, queries, nearest, strict=True):
        cosines = dict(found)
        words = dict([] if ranking == "vectors" else commit.search_words(question, candidates))
        others = [chunk for chunk in words if chunk not in cosines]
        own = np.clip(commit.vectors.take(others) @ query, -1, 1).tolist()
        cosines |= dict(zip(others, own, strict=True))
        places = commit.places(list(cosines))  # of those that have not been removed
        chunks = [chunk for chunk in cosines if chunk in places]
        if ranking == "hybrid":
            chunks = _fuse(chunks, cosines, words)
        yield [_Found(chunk, places[chunk], cosines[chunk]) for chunk in chunks]


def _fuse(chunks: list[int], cosines: dict[int, float], words: dict[int, float]) -> list[int]:
    """Chunks by their fused scores, best first; what the words' search has not found has none."""
    if not chunks:
        return []
    by_vectors = np.array([[cosines[chunk] for chunk in chunks]])
    by_words = np.array([[words.get(chunk, 0.0) for chunk in chunks]])
    [scores] = fuse_scores(by_vectors, by_words)
    return [chunks[place] for place in np.argsort(-scores, kind="stable")]


def _diverse(commit: Commit, found: list[_Found], k: int, diversity: float) -> list[_Found]:
    """k of them, each the best by its score less its greatest cosine with those before it."""
    if not found:
        return []
    vectors = commit.vectors.take([one.chunk for one in found])
    relevance = (1 - diversity) * np.array([one.score for one in found])
    alike = np.zeros(len(found))
    chosen: list[int] = []
    while len(chosen) < min(k, len(found)):
        value = relevance - diversity * alike
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        with_last = vectors @ vectors[chosen[-1]]
        alike = with_last if len(chosen) == 1 else np.maximum(alike, with_last)
    return [found[number] for number in chosen]


def _drop_equal_texts(found: Iterator[_Found]) -> list[_Found]:
    first: dict[bytes, _Found] = {}
    for one in found:
        first.setdefault(one.place.text, one)
    return list(first.values())
