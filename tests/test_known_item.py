"""Retrieval figures against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gem_rag.evaluation.known_item import (
    drop_duplicates,
    evaluate_known_items,
    reciprocal_ranks,
    right_ranks,
)


def test_known_item_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.1, 0.2, 0.15]])
    figures = evaluate_known_items(scores, [0, 1, 2])  # ranks 1, 2, 2
    assert figures.recall_1 == pytest.approx(1 / 3)
    assert figures.recall_10 == 1.0
    assert figures.mrr == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


def test_ties_count_against_the_right_document() -> None:
    assert evaluate_known_items(np.zeros((2, 4)), [0, 3]).mrr == pytest.approx(1 / 4)


def test_ranks_of_the_right_documents_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.2, 0.2, 0.2], [0.3, 0.2, 0.1]])
    right = [0, 1, 0, 2]
    assert right_ranks(scores, right).tolist() == [1, 2, 3, 3]
    assert reciprocal_ranks(scores, right).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 3])
    assert evaluate_known_items(scores, right).mrr == pytest.approx(
        reciprocal_ranks(scores, right).mean()
    )


def test_recall_at_ten() -> None:
    scores = np.arange(12.0)[None].repeat(12, axis=0)  # document j has rank 12 - j
    assert evaluate_known_items(scores, range(12)).recall_10 == pytest.approx(10 / 12)


def test_a_document_of_many_queries_is_one() -> None:
    documents, right = drop_duplicates(["a", "b", "a"])
    assert (documents, right) == (["a", "b"], [0, 1, 0])
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6]])
    assert evaluate_known_items(scores, right).recall_1 == 1
