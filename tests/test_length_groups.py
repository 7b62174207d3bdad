"""Groups hold every row once with little padding, and their attention follows the rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from helpers import naive_mask, placed, position_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gem_rag.core.layout import Layout, Row
from gem_rag.engines.vllm.length_groups import (
    AttentionLayer,
    Group,
    group_by_length,
    pack_into_steps,
)
from gem_rag.errors import GemError

HEADS, KV_HEADS, WIDTH = 4, 2, 8
CPU = torch.device("cpu")
LAYERS = [AttentionLayer(name, HEADS // KV_HEADS, WIDTH**-0.5, None) for name in ("0", "1")]


@pytest.fixture(autouse=True)
def _new_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is never written shows in whatever reads it."""

    def filled(like: Tensor, *size: int) -> Tensor:
        return like.new_full(size, float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)


@st.composite
def some_rows(draw: st.DrawFn, spans: int | None = None) -> list[Row]:
    """Rows whose tokens are all different, with as many spans each or with 0 to 3."""
    rows: list[Row] = []
    for number in range(draw(st.integers(1, 8))):
        length = draw(st.integers(1, 14))
        count = draw(st.integers(0, 3)) if spans is None else spans
        start = st.integers(0, length - 1)
        span = start.flatmap(lambda a, n=length: st.tuples(st.just(a), st.integers(a + 1, n)))
        chosen = draw(st.lists(span, min_size=count, max_size=count))
        rows.append(Row(range(100 * number, 100 * number + length), tuple(chosen)))
    return rows


def random_qkv(generator: torch.Generator, tokens: int) -> list[Tensor]:
    return [
        torch.randn(tokens, heads, WIDTH, generator=generator)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def plain_attention(row: Row, k: int, qkv: Sequence[Tensor]) -> Tensor:
    """One row's attention by the naive mask: [tokens, heads, width] each, texts first."""
    query, key, value = (x.transpose(0, 1) for x in qkv)
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=0) for x in (key, value))
    mask = naive_mask(placed([row], k, "right"))
    scores = (query @ key.transpose(1, 2) * WIDTH**-0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(0, 1)


def poisoned(tensors: Sequence[Tensor]) -> None:
    """As a compiled graph does that uses its buffers again."""
    for tensor in tensors:
        tensor.fill_(float("nan"))


# -- attention ---------------------------------------------------------------------------------


@given(rows=some_rows(), k=st.integers(1, 3), budget=st.integers(1, 80))
def test_attention_in_two_passes_is_plain_attention(rows: list[Row], k: int, budget: int) -> None:
    generator = torch.Generator().manual_seed(budget)
    for group in group_by_length(rows, k, budget, CPU):
        members = [rows[number] for number in group.numbers]
        whole = {
            layer.name: [random_qkv(generator, row.length(k)) for row in members]
            for layer in LAYERS
        }
        found: dict[tuple[str, str], Tensor] = {}
        for kind in ("text", "special"):
            for layer in LAYERS:
                parts = [
                    [x[: len(row.text)] if kind == "text" else x[len(row.text) :] for x in qkv]
                    for row, qkv in zip(members, whole[layer.name], strict=True)
                ]
                flat = [torch.cat(part) for part in zip(*parts, strict=True)]
                out = torch.full_like(flat[0], float("nan"))
                if kind == "text":
                    group.keep_texts(layer, *flat[1:])
                    group.attend_texts(layer, flat[0], out)
                elif len(out):
                    group.attend_specials(layer, flat, out)
                poisoned(flat)
                found[layer.name, kind] = out
        for layer in LAYERS:
            wanted = [
                plain_attention(row, k, qkv)
                for row, qkv in zip(members, whole[layer.name], strict=True)
            ]
            lengths = [len(row.text) for row in members]
            texts = torch.cat([x[:n] for x, n in zip(wanted, lengths, strict=True)])
            specials = torch.cat([x[n:] for x, n in zip(wanted, lengths, strict=True)])
            torch.testing.assert_close(found[layer.name, "text"], texts, atol=1e-5, rtol=0)
            torch.testing.assert_close(found[layer.name, "special"], specials, atol=1e-5, rtol=0)


@given(rows=some_rows(), k=st.integers(1, 3), budget=st.integers(1, 80))
def test_inputs_are_the_rows_tokens_at_their_positions(
    rows: list[Row], k: int, budget: int
) -> None:
    for group in group_by_length(rows, k, budget, CPU):
        members = [rows[number] for number in group.numbers]
        places = [
            place for row in placed(members, k, "right") for place in row if place is not None
        ]
        texts = [place for place in places if place.kind == "text"]
        specials = [place for place in places if place.kind == "special"]
        for inputs, wanted, ids in (
            (group.text_inputs, texts, [members[p.row].text[p.index] for p in texts]),
            (group.special_inputs, specials, [p.index for p in specials]),
        ):
            positions = [position_of(place, members, k) for place in wanted]
            assert [x.tolist() for x in inputs] == [ids, positions]
        assert (len(group.texts), len(group.specials)) == (len(texts), len(specials))


def test_a_text_beyond_the_sliding_window_is_refused() -> None:
    [group] = group_by_length([Row.whole(range(9))], 1, 100, CPU)
    layer = AttentionLayer("0", HEADS // KV_HEADS, 1.0, sliding_window=8)
    query, *pair = random_qkv(torch.Generator(), 9)
    group.keep_texts(layer, *pair)
    with pytest.raises(GemError, match="sliding window of 8 tokens"):
        group.attend_texts(layer, query, query)


# -- groups and steps --------------------------------------------------------------------------


@given(rows=some_rows(), k=st.integers(1, 3), budget=st.integers(1, 80))
def test_groups_hold_every_row_once(rows: list[Row], k: int, budget: int) -> None:
    groups = group_by_length(rows, k, budget, CPU)
    assert sorted(n for group in groups for n in group.numbers) == list(range(len(rows)))
    for group in groups:
        assert len(group.numbers) == group.layout.shape[0]


@given(rows=st.integers(1, 3).flatmap(some_rows), k=st.integers(1, 3), budget=st.integers(1, 80))
def test_rows_with_as_many_spans_share_rectangles_within_the_budget_with_little_padding(
    rows: list[Row], k: int, budget: int
) -> None:
    for group in group_by_length(rows, k, budget, CPU):
        height, width = group.layout.shape
        tokens = sum(rows[number].length(k) for number in group.numbers)
        assert len(group.texts) + len(group.specials) == tokens
        if height > 1:
            assert height * width <= budget
            assert 5 * tokens >= 4 * height * width


def of_lengths(*lengths: int) -> list[Group]:
    """Groups of one row each."""
    return [Group([i], Layout.build([Row.whole(range(n))], 1), CPU) for i, n in enumerate(lengths)]


def sizes(steps: Iterator[list[Group]]) -> list[list[int]]:
    return [[len(group.texts) for group in step] for step in steps]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), budget=st.integers(1, 30))
def test_steps_hold_neighbouring_groups_within_the_budget(lengths: list[int], budget: int) -> None:
    steps = sizes(pack_into_steps(of_lengths(*lengths), budget))
    assert [size for step in steps for size in step] == lengths
    for step in steps:
        assert step
        assert len(step) == 1 or sum(step) <= budget
    for step, following in pairwise(steps):
        assert sum(step) + following[0] > budget


def test_a_group_above_the_budget_is_a_step_of_its_own() -> None:
    assert sizes(pack_into_steps(of_lengths(2, 9, 2, 2), 4)) == [[2], [9], [2, 2]]
