"""Retrieval before and after training, on what was held out, beside what needs no training."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gem_rag._utils.terminal import shorten
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.evaluation.baselines import bm25, bm25_shares, mean_pooled
from gem_rag.evaluation.known_item import (
    RetrievalFigures,
    drop_duplicates,
    evaluate_known_items,
    reciprocal_ranks,
    right_ranks,
)
from gem_rag.evaluation.significance import Difference, paired
from gem_rag.loading import load
from gem_rag.model import Gem
from gem_rag.rag.fusion import fuse_scores
from gem_rag.training.corpus import HeldOut

Scores = npt.NDArray[np.floating]
_EXAMPLES = 10
_EXCERPT = 100  # characters


@dataclass(frozen=True)
class Example:
    """A held-out query, and what was found for it.

    Attributes:
        query: The query.
        rank_before: Of its document, from 1, before training; `rank_after` after it.
        found_before: The beginning of the document that was first; `found_after` likewise.
    """

    query: str
    rank_before: int
    rank_after: int
    found_before: str
    found_after: str


@dataclass(frozen=True)
class Retrieval:
    """Retrieval of one held-out data set.

    Attributes:
        figures: By way of searching: "before", "mean pooling before", "BM25", "after", and "after
            and BM25", fused by reciprocal rank.
        difference: Of the mean reciprocal rank, after minus before.
        documents: How many there were to choose from.
        examples: Ten queries, drawn by a hash of their words.
    """

    figures: dict[str, RetrievalFigures]
    difference: Difference
    documents: int
    examples: list[Example]


def measure_retrieval(
    saved: Checkpoint, base: Checkpoint, k: int, held_out: Sequence[HeldOut]
) -> dict[str, Retrieval]:
    """Measure the trained model, the base as it was given, its mean pooling, and BM25.

    Args:
        saved: The trained model.
        base: The model that training started from.
        k: Special tokens in a group, for a base that has none.
        held_out: What to measure on.

    Returns:
        Figures by data set; those with fewer than two queries are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the base is measured although it has not been trained
        before = load(base.path, k=None if base.trained else k)
    with before, load(saved.path) as after:
        return {
            part.name: _measure(before, after, base, pairs, part.others)
            for part in held_out
            if len(pairs := part.pairs()) > 1
        }


def _measure(
    before: Gem,
    after: Gem,
    base: Checkpoint,
    pairs: Sequence[tuple[str, str]],
    others: Sequence[str],
) -> Retrieval:
    queries = [query for query, _ in pairs]
    documents, right = drop_duplicates([*(document for _, document in pairs), *others])
    right = right[: len(queries)]
    ids = [
        [before.tokenize(text)[: before.max_length] for text in texts]
        for texts in (queries, documents)
    ]
    pooled = mean_pooled(base.path, *ids)
    by_words, trained = bm25(queries, documents), similarities(after, queries, documents)
    scores: dict[str, Scores] = {
        "before": similarities(before, queries, documents),
        "mean pooling before": pooled[0] @ pooled[1].T,
        "BM25": by_words,
        "after": trained,
        "after and BM25": fuse_scores(trained, bm25_shares(queries, documents)),
    }
    return Retrieval(
        {name: evaluate_known_items(each, right) for name, each in scores.items()},
        paired(
            reciprocal_ranks(scores["before"], right).tolist(),
            reciprocal_ranks(trained, right).tolist(),
        ),
        len(documents),
        _examples(queries, documents, right, scores["before"], trained),
    )


def similarities(gem: Gem, queries: list[str], documents: list[str]) -> Scores:
    """Cosines by a model: [queries, documents]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # long texts are truncated, for all models alike
        return gem.embed_queries(queries) @ gem.embed_documents(documents).T


def retrieval_figures(
    gem: Gem, queries: list[str], documents: list[str], relevant: Sequence[int] | None = None
) -> RetrievalFigures:
    """Retrieve every query's document with a model.

    Args:
        gem: The model.
        queries: Queries.
        documents: Documents.
        relevant: The number of each query's document; default document i for query i.

    Returns:
        Recall at 1 and 10, and the mean reciprocal rank.
    """
    return evaluate_known_items(similarities(gem, queries, documents), relevant)


def _examples(
    queries: Sequence[str],
    documents: Sequence[str],
    right: Sequence[int],
    before: Scores,
    after: Scores,
) -> list[Example]:
    drawn = sorted(range(len(queries)), key=lambda i: hashlib.md5(queries[i].encode()).digest())
    of_before, of_after = right_ranks(before, right), right_ranks(after, right)

    def found(scores: Scores, rank: int, own: int) -> str:
        # Of documents that tie, not the query's own: its rank counts them as above it.
        others = np.where(np.arange(len(documents)) == own, -np.inf, scores)
        return _beginning(documents[own if rank == 1 else int(others.argmax())])

    return [
        Example(
            _beginning(queries[row]),
            int(of_before[row]),
            int(of_after[row]),
            found(before[row], of_before[row], right[row]),
            found(after[row], of_after[row], right[row]),
        )
        for row in drawn[:_EXAMPLES]
    ]


def _beginning(text: str) -> str:
    return shorten(" ".join(text.split()), _EXCERPT)
