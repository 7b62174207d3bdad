"""Layouts hold every token once at its right position, and batches hold every row once."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers import placed, position_of
from hypothesis import given
from hypothesis import strategies as st

from gem_rag.core import layout as layout_module
from gem_rag.core.layout import (
    Layout,
    Role,
    Row,
    group_to_fit,
    plan_batches,
    vector_places,
)
from gem_rag.errors import InputError

ARRANGEMENTS = ["aligned", "right"]
ROLES = {"text": Role.TEXT, "special": Role.SPECIAL, "suffix": Role.SUFFIX}


@st.composite
def any_rows(draw: st.DrawFn) -> list[Row]:
    rows = []
    for number in range(draw(st.integers(1, 4))):
        text = [100 * number + i for i in range(draw(st.integers(1, 9)))]
        stop = draw(st.integers(1, len(text)))
        spans = [((0, len(text)),), ((0, stop), (stop - 1, stop)), ()]
        suffix = [100 * number + 50 + i for i in range(draw(st.integers(0, 3)))]
        chosen = spans[0] if suffix else draw(st.sampled_from(spans))
        rows.append(Row(text, chosen, suffix))
    return rows


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), k=st.integers(1, 3))
def test_plain_rows_are_arranged_at_once_as_they_are_one_by_one(lengths: list[int], k: int) -> None:
    rows = [Row.whole(list(range(7, 7 + length))) for length in lengths]
    at_once = Layout.build(rows, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "_is_plain", lambda row: False)
        one_by_one = Layout.build(rows, k)
    assert at_once.rest_start == one_by_one.rest_start
    assert np.array_equal(at_once.ids, one_by_one.ids)
    assert np.array_equal(np.stack(at_once.tokens), np.stack(one_by_one.tokens))


@given(rows=any_rows(), k=st.integers(1, 3), arrangement=st.sampled_from(ARRANGEMENTS))
def test_every_token_stands_once_at_its_position(rows: list[Row], k: int, arrangement: Any) -> None:
    layout = Layout.build(rows, k, arrangement)
    grid = placed(rows, k, arrangement)
    assert layout.shape == (len(grid), len(grid[0]))
    for b, t in np.ndindex(layout.shape):
        place = grid[b][t]
        assert layout.tokens.column[b, t] == t
        if place is None:
            assert layout.tokens.role[b, t] == Role.PAD
            continue
        row = rows[place.row]
        ids = {"text": row.text, "special": range(k), "suffix": row.suffix}[place.kind]
        assert layout.ids[b, t] == ids[place.index]
        assert layout.tokens.role[b, t] == ROLES[place.kind]
        assert b == place.row
        assert layout.tokens.position[b, t] == position_of(place, rows, k)
        if place.kind == "special":
            assert (layout.tokens.start[b, t], layout.tokens.stop[b, t]) == place.span


@given(rows=any_rows(), k=st.integers(1, 3), arrangement=st.sampled_from(ARRANGEMENTS))
def test_special_tokens_come_in_order_of_row_and_span(
    rows: list[Row], k: int, arrangement: Any
) -> None:
    layout = Layout.build(rows, k, arrangement)
    where = layout.specials
    found = zip(where[0], layout.tokens.stop[where], layout.ids[where],
                strict=True)  # fmt: skip
    expected = [(r, stop, slot) for r, row in enumerate(rows) for _, stop in row.spans
                for slot in range(k)]  # fmt: skip
    assert list(found) == expected


def test_aligned_special_tokens_share_columns() -> None:
    layout = Layout.build([Row.whole([1, 2, 3]), Row.whole([4])], k=2)
    assert layout.rest_start == 3
    assert layout.specials[1].tolist() == [3, 4, 3, 4]


@pytest.mark.parametrize("span", [(0, 0), (2, 1), (-1, 2), (0, 4), (3, 4)])
def test_a_bad_span_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="not a non-empty part of a text of 3 tokens"):
        Row([1, 2, 3], (span,))


def test_an_empty_text_has_no_embedding() -> None:
    with pytest.raises(InputError, match="non-empty"):
        Row.whole([])


@pytest.mark.parametrize("spans", [(), ((0, 1), (0, 2))])
def test_a_suffix_reads_exactly_one_span(spans: Any) -> None:
    with pytest.raises(InputError, match="exactly one span"):
        Row([1, 2], spans, [3])


def test_a_layout_needs_a_row() -> None:
    with pytest.raises(InputError, match="at least one row"):
        Layout.build([], 1)


@given(lengths=st.lists(st.integers(1, 40), max_size=30), budget=st.integers(1, 100))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(plan_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), budget=st.integers(1, 100))
def test_batches_go_from_long_to_short(lengths: list[int], budget: int) -> None:
    order = [lengths[i] for batch in plan_batches(lengths, budget) for i in batch]
    assert order == sorted(lengths, reverse=True)


def test_batches_are_as_large_as_the_budget_allows() -> None:
    assert [len(batch) for batch in plan_batches([4] * 10, 16)] == [4, 4, 2]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    budget=st.integers(1, 30),
    least=st.integers(1, 4),
)
def test_groups_hold_consecutive_layouts_within_the_budget(
    lengths: list[int], budget: int, least: int
) -> None:
    layouts = [Layout.build([Row.whole(range(n))], 1) for n in lengths]
    groups = list(group_to_fit(layouts, budget, lambda one: max(least, one.shape[1] - 1)))
    assert [layout for group in groups for layout in group] == layouts
    sizes = [[max(least, layout.shape[1] - 1) for layout in group] for group in groups]
    for size in sizes:
        assert len(size) == 1 or 0 < sum(size) <= budget
    for size, following in itertools.pairwise(sizes):
        assert sum(size) + following[0] > budget


@given(rows=any_rows(), budget=st.integers(1, 40))
def test_vectors_return_to_the_order_of_their_rows(rows: list[Row], budget: int) -> None:
    batches = list(plan_batches([row.length(1) for row in rows], budget))
    of_batches = [(i, span) for batch in batches for i in batch for span in rows[i].spans]
    places = vector_places(rows, batches)
    assert [of_batches[place] for place in places] == [
        (i, span) for i, row in enumerate(rows) for span in row.spans
    ]


def test_an_unknown_arrangement_is_refused() -> None:
    with pytest.raises(InputError, match="arranged aligned or right, not left"):
        Layout.build([Row.whole([1, 2])], 1, "left")  # type: ignore[arg-type]
