"""Scores: kept, merged, compared; means with intervals and differences with their chance."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_rag.errors import InputError
from gem_rag.evaluation.comparison import compare
from gem_rag.evaluation.scores import Missing, Record, Score, merge_records
from gem_rag.evaluation.significance import interval, paired

RNG = np.random.default_rng(0)


def score(task: str, value: float, system: str = "own", metric: str = "ndcg_at_10",
          items: tuple[float, ...] = (), **more: float) -> Score:  # fmt: skip
    return Score("retrieval", task, metric, system, value, items, **more)


def test_a_record_is_kept(tmp_path: Path) -> None:
    scores = (score("a", 0.5, items=(0.0, 1.0), low=0.0, high=1.0),)
    missing = (Missing("generation", "mmlu", "no data"),)
    record = Record("own", scores, missing, {"k": 5}, {"all": 1.5}, "a machine")
    record.save(tmp_path / "new" / "scores.json")
    assert Record.load(tmp_path / "new" / "scores.json") == record


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format": 1}', '{"format": 1, "gem-rag": "1"}']
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(InputError, match="is no evaluation"):
        Record.load(tmp_path / "scores.json")
    with pytest.raises(InputError, match="is no evaluation"):
        Record.load(tmp_path / "nowhere.json")


def test_later_scores_replace_earlier_ones_and_what_was_missing() -> None:
    first = Record("own", (score("a", 0.1), score("b", 0.2)), (Missing("retrieval", "c", "why"),))
    second = Record("own", (score("a", 0.3), score("c", 0.4)))
    both = merge_records([first, second])
    assert {s.task: s.value for s in both.scores} == {"a": 0.3, "b": 0.2, "c": 0.4}
    assert both.missing == ()
    with pytest.raises(InputError, match="several systems: own, other"):
        merge_records([first, Record("other", ())])


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    covered = 0
    for _ in range(100):
        low, high = interval((RNG.random(60) < 0.3).astype(float).tolist())
        covered += low <= 0.3 <= high
    assert 85 <= covered <= 100
    assert interval([0.5]) == (0.5, 0.5)
    assert interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(0.1, 1))
def test_intervals_hold_the_mean_and_move_with_the_values(values: list[float], by: float) -> None:
    low, high = interval(values)
    assert low - 1e-9 <= np.mean(values) <= high + 1e-9
    moved = interval([value + by for value in values])
    assert moved == pytest.approx((low + by, high + by), abs=1e-6)


def test_a_difference_beyond_chance_is_told_from_one_within() -> None:
    first = RNG.random(200)
    noise = RNG.normal(0, 0.1, 200)
    far, near = paired(first, first + noise + 0.1), paired(first, first + noise - noise.mean())
    assert far.value == pytest.approx(0.1 + noise.mean())
    assert 0 < far.low < far.value < far.high
    assert far.p < 0.01
    assert near.p > 0.5
    assert paired([1.0, 0.0], [1.0, 0.0]).p == 1.0
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([1.0], [1.0, 2.0])


def test_evaluations_are_compared_by_pairs_or_by_standard_errors() -> None:
    items = tuple(RNG.random(100))
    better = tuple(min(1.0, i + 0.2) for i in items)
    one = Record("A", (
        score("paired", float(np.mean(items)), "A", items=items),
        score("errors", 0.5, "A", error=0.01),
        score("means", 0.5, "A"),
        score("speed", 2.0, "A", "seconds", items=tuple(i + 1 for i in items)),
        score("alone", 0.5, "A"),
        score("paired", 0.9, "BM25", items=items),
    ))  # fmt: skip
    other = Record("B", (
        score("paired", float(np.mean(better)), "B", items=better),
        score("errors", 0.4, "B", error=0.01),
        score("means", 0.9, "B"),
        score("speed", 3.0, "B", "seconds", items=tuple(i + 2 for i in items)),
    ))  # fmt: skip
    found = {c.first.task: c for c in compare(one, other)}
    assert list(found) == ["paired", "errors", "means", "speed"]
    assert {task: c.better for task, c in found.items()} == {
        "paired": "second", "errors": "first", "means": "", "speed": "first",
    }  # fmt: skip
    assert found["errors"].difference.low == pytest.approx(-0.1 - 1.96 * math.hypot(0.01, 0.01))
    assert math.isnan(found["means"].difference.p)
    with pytest.raises(InputError, match="no task and metric in common"):
        compare(one, Record("B", ()))
