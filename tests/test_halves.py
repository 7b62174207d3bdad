"""The rule in two halves, padded and packed, against transformers' own forward and autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flash_stand_in import Launches, use_packed_texts
from helpers import (
    ARCHITECTURES,
    build_model,
    random_ids,
    randomise,
    reference_hidden_states,
    tiny_encoder,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gem_rag.core import varlen
from gem_rag.core.encoder import GemEncoder
from gem_rag.core.layout import Layout, Row, plan_batches
from gem_rag.core.pooling import pool
from gem_rag.errors import GemError
from gem_rag.training import scopes
from gem_rag.training.recipe import Adapter


@pytest.fixture(params=["padded", "packed"])
def texts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the texts of a pass are arranged."""
    if request.param == "packed":
        use_packed_texts(monkeypatch)
    return str(request.param)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    use_packed_texts(monkeypatch)


def batches_of_rows() -> list[list[Row]]:
    """Whole texts; observers beside them, rows without special tokens; long ones."""
    generator = torch.Generator().manual_seed(0)
    return [
        [Row.whole(random_ids(n, generator)) for n in (1, 9, 4)],
        [
            Row(random_ids(8, generator), ((0, 3), (2, 8), (0, 8))),
            Row(random_ids(5, generator), ()),
            Row.whole(random_ids(11, generator)),
            Row(random_ids(6, generator), ((5, 6),)),
        ],
        [Row.whole(random_ids(n, generator)) for n in (40, 33)],
    ]


def special_encoder(architecture: str, k: int, **settings: Any) -> GemEncoder:
    model = build_model(architecture, **settings)
    encoder = scopes.prepare_special(model, k, adapter=Adapter(rank=4)).encoder
    randomise(encoder.special)
    return encoder


# -- vectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_vectors_are_those_of_the_written_out_rule(
    architecture: str,
    k: int,
    texts: str,
    tiny_model: Callable[[str], Any],
    reference_model: Callable[[str], Any],
) -> None:
    encoder = tiny_encoder(tiny_model(architecture), k)
    batches = batches_of_rows()
    found = encoder.embed_in_halves([Layout.build(rows, k) for rows in batches])
    expected = []
    for row in (row for rows in batches for row in rows):
        hidden = reference_hidden_states(
            reference_model(architecture), encoder.special.embeddings, [row], "right"
        )[0, len(row.text) :]
        expected += [pool(group[None], "mean") for group in hidden.split(k) if len(group)]
    assert (found - torch.cat(expected)).abs().max() < 1e-5


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    k=st.integers(1, 3),
    pass_tokens=st.integers(1, 60),
    data=st.data(),
)
@torch.inference_mode()
def test_any_rows_in_any_batches_give_the_dense_vectors(
    tiny_model: Any, lengths: list[int], k: int, pass_tokens: int, data: st.DataObject
) -> None:
    encoder = tiny_encoder(tiny_model("qwen3"), k)
    rows = []
    for number, length in enumerate(lengths):
        start = st.integers(0, length - 1)
        span = start.flatmap(lambda a, n=length: st.tuples(st.just(a), st.integers(a + 1, n)))
        spans = data.draw(st.lists(span, min_size=not number, max_size=3))
        rows.append(Row(list(range(5, 5 + length)), tuple(spans)))
    cut = data.draw(st.integers(0, len(rows) - 1))
    layouts = [Layout.build(part, k) for part in (rows[: cut + 1], rows[cut + 1 :]) if part]
    expected = torch.cat([encoder(layout, "dense") for layout in layouts])
    assert (encoder.embed_in_halves(layouts) - expected).abs().max() < 1e-5
    with pytest.MonkeyPatch.context() as patch:
        use_packed_texts(patch)
        found = encoder.embed_in_halves(layouts, pass_tokens=pass_tokens)
    assert (found - expected).abs().max() < 1e-5


def test_a_text_beyond_the_sliding_window_is_refused(texts: str) -> None:
    encoder = special_encoder("mistral", 2, sliding_window=12)
    encoder.embed_in_halves([Layout.build([Row.whole([5] * 10)], 2)])
    for length in (11, 20):
        with pytest.raises(GemError, match="window of 12 tokens"):
            encoder.embed_in_halves([Layout.build([Row.whole([5] * length)], 2)])


# -- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("k", [1, 3])
def test_special_tokens_get_the_gradients_of_the_written_out_rule(
    architecture: str, k: int, texts: str
) -> None:
    encoder = special_encoder(architecture, k)
    layouts = [Layout.build(rows, k) for rows in batches_of_rows()]
    (plain, of_plain), (vectors, of_halves) = (
        gradients(encoder, forward)
        for forward in (
            lambda: torch.cat([encoder(layout, "dense") for layout in layouts]),
            lambda: encoder.embed_in_halves(layouts, frozen_texts=True),
        )
    )
    assert (plain - vectors).abs().max() < 1e-5
    assert of_plain.keys() == of_halves.keys()
    for name, gradient in of_halves.items():
        assert (gradient - of_plain[name]).abs().max() <= 1e-4 * of_plain[name].abs().max()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_texts_get_their_gradients_too(architecture: str, texts: str) -> None:
    encoder = GemEncoder(build_model(architecture), 2)
    layouts = [Layout.build(rows, 2) for rows in batches_of_rows()]
    (_, of_plain), (_, of_halves) = (
        gradients(encoder, forward)
        for forward in (
            lambda: torch.cat([encoder(layout, "dense") for layout in layouts]),
            lambda: encoder.embed_in_halves(layouts),
        )
    )
    assert of_plain.keys() == of_halves.keys()
    assert len(of_plain) > 10
    for name, gradient in of_halves.items():
        assert (gradient - of_plain[name]).abs().max() <= 1e-4 * of_plain[name].abs().max() + 1e-7


def gradients(
    encoder: GemEncoder, forward: Callable[[], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Vectors, and the gradients that a function of them gives, by weight."""
    encoder.zero_grad()
    vectors = forward()
    (vectors @ torch.linspace(-1, 1, encoder.dim)).square().sum().backward()
    found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    return vectors.detach(), found


# -- launches ----------------------------------------------------------------------------------

LAYERS = 30  # of the 135M shape; how wide they are changes no count
MIXES = ([12] * 24, [5 + 2 * n for n in range(24)])  # lengths of texts: alike, and all kinds


def small_llama(k: int = 1) -> GemEncoder:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=320, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    return scopes.prepare_special(model, k, adapter=Adapter(rank=4)).encoder


def layouts_of(lengths: list[int], k: int = 1) -> list[Layout]:
    """As an engine or a recipe's memory splits them."""
    rows = [Row.whole([7] * length) for length in lengths]
    batches = plan_batches([row.length(k) for row in rows], 1024, 0.1)
    return [Layout.build([rows[i] for i in batch], k) for batch in batches]


def launches(run: Callable[[], Any]) -> int:
    with Launches() as counted:
        run()
    return counted.count


@torch.no_grad()
def plain_launches(encoder: GemEncoder) -> int:
    ids = torch.full((2, 9), 5)
    return launches(lambda: encoder.base(input_ids=ids, use_cache=False))


@pytest.mark.parametrize("lengths", MIXES)
def test_launches_of_an_embedding_call(lengths: list[int], packed: None) -> None:
    """A plain forward pass for the texts, and the special tokens of all of them once."""
    encoder, layouts = small_llama(), layouts_of(lengths)
    with torch.inference_mode():
        found = launches(lambda: encoder.embed_in_halves(layouts))
    assert found - plain_launches(encoder) < 2_200


def test_launches_of_a_short_query() -> None:
    encoder, layout = small_llama(), Layout.build([Row.whole([7] * 12)], 1)
    with torch.inference_mode():
        assert launches(lambda: encoder(layout)) < 2_000


@pytest.mark.parametrize("lengths", MIXES)
def test_launches_of_a_training_step(lengths: list[int], packed: None) -> None:
    encoder, layouts = small_llama(), layouts_of(lengths)

    def step() -> None:
        encoder.embed_in_halves(layouts, frozen_texts=True).sum().backward()

    assert launches(step) < 14_000


def test_launches_do_not_depend_on_the_mix_of_lengths(packed: None) -> None:
    encoder = small_llama()

    def found(lengths: list[int]) -> int:
        layouts = layouts_of(lengths)
        return launches(lambda: encoder.embed_in_halves(layouts))

    assert found(MIXES[0]) == found(MIXES[1])


def test_padded_batches_add_a_plain_forward_and_attention_each() -> None:
    """Without the kernel too, special tokens of all batches run through the layers once."""
    encoder = small_llama()
    [layout] = layouts_of([12] * 16)

    def step(batches: int) -> int:
        return launches(
            lambda: encoder.embed_in_halves([layout] * batches, frozen_texts=True).sum().backward()
        )

    assert step(8) - step(4) <= 4 * (plain_launches(encoder) + 60 * LAYERS)


def test_the_kernel_is_for_graphics_cards() -> None:
    assert not varlen.is_supported(torch.device("cpu"), torch.bfloat16, 64)
