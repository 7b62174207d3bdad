"""Rankings fused by scores and by reciprocal ranks, by numbers worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import FakeGem

from gem_rag import Document, Index
from gem_rag.evaluation.words import WordIndex
from gem_rag.rag.fusion import fuse_scores, ranks, reciprocal_rank_fusion


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


def test_scores_are_fused_as_shares_words_weighing_less() -> None:
    fused = fuse_scores(np.array([[0.5, 0.25, 0.0]]), np.array([[0.5, 1.0, 0.0]]))
    assert fused[0].tolist() == pytest.approx([1 + 0.6 / 2, 0.5 + 0.6, 0.0])


def test_where_no_word_is_shared_or_no_cosine_is_positive_the_other_decides() -> None:
    cosines = np.array([[0.2, 0.9, 0.5]])
    assert fuse_scores(cosines, np.zeros((1, 3))).argmax() == 1
    fused = fuse_scores(np.array([[-0.5, -0.2]]), np.array([[1.0, 0.0]]))
    assert fused[0].tolist() == pytest.approx([0.1, -0.2])
    assert fuse_scores(np.zeros((2, 0)), np.zeros((2, 0))).shape == (2, 0)


def test_a_word_that_the_best_text_alone_holds_is_worth_more_than_one_that_all_hold() -> None:
    index = WordIndex(["a pump moves water", "a lamp gives light", "a door shuts water out"])
    [rare, common, foreign] = index.shares(["lamp", "water", "lamp zebra"])
    assert rare.argmax() == 1
    assert rare[1] == pytest.approx(1, abs=0.1)  # a text of average length holds it once
    assert foreign[1] < rare[1] / 2 + 0.1  # half of what was asked for is nowhere
    assert common[1] == 0
    assert WordIndex(["the of and"]).shares(["pump"]).tolist() == [[0.0]]


def test_an_index_and_the_benchmarks_give_words_the_same_shares(tmp_path: Path) -> None:
    texts = [f"pump {n} moves {'air' if n % 5 else 'water'} in house {n * 7}" for n in range(40)]
    index = Index.open(tmp_path, FakeGem())  # type: ignore[arg-type]
    index.sync([Document(f"{n}", text) for n, text in enumerate(texts)])
    for question in ("water", "house 21", "zebra water"):
        [want] = WordIndex(texts).shares([question])
        found = index._storage.read(lambda commit, q=question: commit.search_words(q, 40))  # type: ignore[misc]
        got = np.zeros(40)
        for chunk, share in found:
            got[chunk - 1] = share
        assert got == pytest.approx(want, abs=0.25)  # k1 is 1.2 there, and 1.5 here
