"""Rankings fused by reciprocal rank, by numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gem_rag.rag.fusion import fuse, ranks, reciprocal_rank_fusion


def test_ranks_count_from_one_and_the_first_of_equals_is_higher() -> None:
    assert ranks(np.array([[0.1, 0.9, 0.5], [2.0, 2.0, 3.0]])).tolist() == [[3, 1, 2], [2, 3, 1]]


def test_fused_scores_are_sums_of_reciprocal_ranks() -> None:
    fused = reciprocal_rank_fusion(np.array([[3.0, 2.0, 1.0]]), np.array([[0.1, 0.3, 0.2]]))
    expected = [1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62]
    assert fused[0].tolist() == pytest.approx(expected)


def test_what_both_put_second_beats_what_one_puts_first_and_the_other_last() -> None:
    first = np.array([[9.0, 8.0, *np.zeros(98)]])
    second = np.array([[-1.0, 8.0, *np.zeros(97), 9.0]])
    assert reciprocal_rank_fusion(first, second)[0].argmax() == 1


def test_what_a_ranking_has_not_found_gets_nothing_from_it() -> None:
    fused = reciprocal_rank_fusion(np.array([[0.5, 0.9, 0.7]]), np.array([[-np.inf, -np.inf, 2.0]]))
    assert fused[0].tolist() == pytest.approx([1 / 63, 1 / 61, 1 / 62 + 1 / 61])


def test_names_are_fused_like_scores() -> None:
    # 1/61 + 1/63, 1/62, 1/63 + 1/61, 1/62: of equal sums the first ranking's order.
    assert fuse(["a", "b", "c"], ["c", "d", "a"]) == ["a", "c", "b", "d"]
    assert fuse(["a", "b"], []) == ["a", "b"]
    assert fuse() == []
