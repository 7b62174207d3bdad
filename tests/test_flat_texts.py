"""Texts enter their halves from a flat sequence, and leave them, without a mistake of place."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from flash_stand_in import use_packed_texts
from helpers import naive_mask, placed, position_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gem_rag.core.halves import PaddedTexts, SpecialHalf
from gem_rag.core.layout import Layout, Row, plan_batches
from gem_rag.core.packed_texts import PackedTexts
from gem_rag.engines.vllm.flat_texts import FlatTexts

HEADS, KV_HEADS, WIDTH = 4, 2, 8
SCALE = WIDTH**-0.5
LAYERS = 2
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _new_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is never written shows in whatever reads it."""

    def filled(like: Tensor, *size: int) -> Tensor:
        return like.new_full(size, float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    """Rows whose tokens are all different, with 1 to 3 spans each."""
    rows: list[Row] = []
    for number in range(draw(st.integers(1, 8))):
        length = draw(st.integers(1, 14))
        start = st.integers(0, length - 1)
        span = start.flatmap(lambda a, n=length: st.tuples(st.just(a), st.integers(a + 1, n)))
        chosen = draw(st.lists(span, min_size=1, max_size=3))
        rows.append(Row(range(100 * number, 100 * number + length), tuple(chosen)))
    return rows


def batches_of(rows: Sequence[Row], k: int, budget: int) -> list[list[Row]]:
    planned = plan_batches([row.length(k) for row in rows], budget, 0.2)
    return [[rows[i] for i in batch] for batch in planned]


def flat_texts(batches: Sequence[Sequence[Row]], k: int, packed: bool) -> list[FlatTexts]:
    layouts = [Layout.build(batch, k) for batch in batches]
    if packed:
        return [FlatTexts(PackedTexts(layouts, CPU, torch.float32), CPU)]
    return [FlatTexts(PaddedTexts(layout, CPU), CPU) for layout in layouts]


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
    scores = (query @ key.transpose(1, 2) * SCALE).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(0, 1)


def poison(tensors: Sequence[Tensor]) -> None:
    """As a compiled graph does that uses its buffers again."""
    for tensor in tensors:
        tensor.fill_(float("nan"))


def joined(rows: Sequence[Row], whole: Sequence[Sequence[Tensor]], texts: bool) -> list[Tensor]:
    """Query, key and value of all rows' texts, or of what follows them, one after another."""
    parts = [
        [x[: len(row.text)] if texts else x[len(row.text) :] for x in qkv]
        for row, qkv in zip(rows, whole, strict=True)
    ]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("packed", [False, True])
@given(rows=some_rows(), k=st.integers(1, 3), budget=st.integers(1, 80))
def test_attention_in_two_halves_is_plain_attention(
    rows: list[Row], k: int, budget: int, packed: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_packed_texts(patch)
        batches = batches_of(rows, k, budget)
        rows = [row for batch in batches for row in batch]
        generator = torch.Generator().manual_seed(budget)
        layers = [[random_qkv(generator, row.length(k)) for row in rows] for _ in range(LAYERS)]
        texts = flat_texts(batches, k, packed)
        for whole in layers:
            wanted = [plain_attention(row, k, qkv) for row, qkv in zip(rows, whole, strict=True)]
            flat = joined(rows, whole, texts=True)
            out = torch.full_like(flat[0], float("nan"))
            sizes = [len(text) for text in texts]
            parts = zip(*(x.split(sizes) for x in (*flat, out)), strict=True)
            for text, (query, key, value, own) in zip(texts, parts, strict=True):
                text.keep(key, value)
                text.attend((query, key, value), SCALE, own)
            poison(flat)
            expected = [x[: len(row.text)] for row, x in zip(rows, wanted, strict=True)]
            torch.testing.assert_close(out, torch.cat(expected), atol=1e-5, rtol=0)
        half = SpecialHalf([text.half for text in texts], CPU)
        for whole in layers:
            wanted = [plain_attention(row, k, qkv) for row, qkv in zip(rows, whole, strict=True)]
            qkv = [torch.zeros(len(half.slots), *x.shape[1:]) for x in whole[0]]
            for padded, own in zip(qkv, joined(rows, whole, texts=False), strict=True):
                padded[half.places] = own
            half.calls += 1
            query, key, value = (x.transpose(0, 1)[None] for x in qkv)
            found, _ = half.attend(None, (query, key, value), None, SCALE)
            expected = [x[len(row.text) :] for row, x in zip(rows, wanted, strict=True)]
            torch.testing.assert_close(
                found[0, half.places], torch.cat(expected), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("packed", [False, True])
@given(rows=some_rows(), k=st.integers(1, 3), budget=st.integers(1, 80))
def test_inputs_are_the_rows_tokens_at_their_positions(
    rows: list[Row], k: int, budget: int, packed: bool
) -> None:
    batches = batches_of(rows, k, budget)
    rows = [row for batch in batches for row in batch]
    places = [place for row in placed(rows, k, "right") for place in row if place is not None]
    texts = [place for place in places if place.kind == "text"]
    specials = [place for place in places if place.kind == "special"]
    found = flat_texts(batches, k, packed)
    half = SpecialHalf([text.half for text in found], CPU)
    for inputs, wanted, ids in (
        (
            [torch.cat([text.ids for text in found]), torch.cat([x.positions for x in found])],
            texts,
            [rows[p.row].text[p.index] for p in texts],
        ),
        (
            [half.slots[half.places], half.position[half.places]],
            specials,
            [p.index for p in specials],
        ),
    ):
        positions = [position_of(place, rows, k) for place in wanted]
        assert [x.tolist() for x in inputs] == [ids, positions]
    assert sum(map(len, found)) == len(texts)
    assert [n for text in found for n in text.half.lengths] == [len(row.text) for row in rows]
