"""The attention rule against its table, and its lowerings against transformers' own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    ARCHITECTURES,
    build_model,
    is_real,
    naive_mask,
    placed,
    random_ids,
    reference_hidden_states,
    tiny_encoder,
)
from hypothesis import given
from hypothesis import strategies as st

from gem_rag.core.attention import lower
from gem_rag.core.encoder import GemEncoder, check_supported, max_text_tokens
from gem_rag.core.layout import Layout, Row
from gem_rag.errors import GemError

# How rows are arranged, and what then runs them.
WAYS = [("aligned", "dense"), ("aligned", "split"), ("right", "dense")]
LOWERINGS = ("dense", "split")


def ragged_rows(count: int) -> list[Row]:
    """Rows of different length; some with observers, some with a suffix, some bare."""
    generator = torch.Generator().manual_seed(count)
    rows = []
    for number in range(count):
        length = 1 + (7 * number + 5) % 11
        text = random_ids(length, generator)
        if number % 4 == 1:
            rows.append(Row.whole(text, random_ids(1 + number % 3, generator)))
        elif number % 4 == 2:
            half = (length + 1) // 2
            rows.append(Row(text, ((length // 2, length), (0, half))))
        elif number % 8 == 7:
            rows.append(Row(text, ()))
        else:
            rows.append(Row.whole(text))
    return rows


# -- the rule ----------------------------------------------------------------------------------


@st.composite
def any_row(draw: st.DrawFn) -> Row:
    length = draw(st.integers(1, 12))
    text = [5] * length
    if draw(st.booleans()):
        return Row.whole(text, [6] * draw(st.integers(0, 4)))
    start = st.integers(0, length - 1)
    span = start.flatmap(lambda a: st.tuples(st.just(a), st.integers(a + 1, length)))
    return Row(text, tuple(draw(st.lists(span, min_size=1, max_size=3))))


@given(
    rows=st.lists(any_row(), min_size=1, max_size=4),
    k=st.integers(1, 3),
    arrangement=st.sampled_from(["aligned", "right"]),
)
def test_mask_is_the_table(rows: list[Row], k: int, arrangement: Any) -> None:
    mask = lower(Layout.build(rows, k, arrangement), "dense").mask[:, 0]
    assert torch.equal(mask, naive_mask(placed(rows, k, arrangement)))


# -- lowerings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 32])
@pytest.mark.parametrize("arrangement", ["aligned", "right"])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_lowerings_agree_with_transformers(
    architecture: str,
    k: int,
    arrangement: Any,
    count: int,
    tiny_model: Callable[[str], Any],
    reference_model: Callable[[str], Any],
) -> None:
    rows = ragged_rows(count)
    encoder = tiny_encoder(tiny_model(architecture), k)
    layout = Layout.build(rows, k, arrangement)
    expected = reference_hidden_states(
        reference_model(architecture), encoder.special.embeddings, rows, arrangement
    )
    real = is_real(placed(rows, k, arrangement))
    for how in [how for way, how in WAYS if way == arrangement]:
        found = encoder.hidden_states(layout, how)
        assert (found - expected)[real].abs().max() < 1e-5, how


def test_split_refuses_rows_padded_whole(tiny_model: Any) -> None:
    layout = Layout.build(ragged_rows(2), 1, "right")
    with pytest.raises(GemError, match="arrange rows 'aligned'"):
        tiny_encoder(tiny_model("llama"), 1).hidden_states(layout, "split")


@pytest.mark.parametrize(("arrangement", "how"), WAYS)
@torch.inference_mode()
def test_texts_without_special_tokens(arrangement: Any, how: Any, tiny_model: Any) -> None:
    """Rows that have no special token are plain causal text in every arrangement."""
    rows = [Row([7, 8, 9, 10], ()), Row([11, 12], ())]
    encoder = tiny_encoder(tiny_model("llama"), 1)
    hidden = encoder.hidden_states(Layout.build(rows, 1, arrangement), how)
    real = is_real(placed(rows, 1, arrangement))
    for number, row in enumerate(rows):
        alone = encoder.base(torch.tensor([row.text])).last_hidden_state[0]
        assert (hidden[number, real[number]] - alone).abs().max() < 1e-5


# -- observers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", LOWERINGS)
@pytest.mark.parametrize("pooling", ["mean", "concat"])
@torch.inference_mode()
def test_observers_equal_the_dense_mask(how: Any, pooling: Any, tiny_model: Any) -> None:
    encoder = tiny_encoder(tiny_model("qwen3"), 2, pooling)
    layout = Layout.build(ragged_rows(8), 2)
    vectors = encoder(layout, how)
    assert vectors.shape == (sum(len(row.spans) for row in ragged_rows(8)), encoder.dim)
    assert (vectors - encoder(layout, "dense")).abs().max() < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "concat"])
@torch.inference_mode()
def test_a_vector_is_the_pooled_last_hidden_states(
    pooling: Any, tiny_model: Any, reference_model: Any
) -> None:
    rows = [Row([9, 10, 11, 12], ((0, 2), (1, 4))), Row.whole([13, 14])]
    encoder = tiny_encoder(tiny_model("llama"), 3, pooling)
    hidden = reference_hidden_states(
        reference_model("llama"), encoder.special.embeddings, rows, "right"
    )
    groups = [hidden[0, 4:7], hidden[0, 7:10], hidden[1, 2:5]]
    pooled = [group.mean(0) if pooling == "mean" else group.reshape(-1) for group in groups]
    expected = torch.stack([vector / vector.norm() for vector in pooled])
    assert (encoder(Layout.build(rows, 3)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("how", LOWERINGS)
@torch.inference_mode()
def test_no_text_sees_an_observer(how: Any, tiny_model: Any) -> None:
    encoder = tiny_encoder(tiny_model("llama"), 2)
    text = list(range(10, 22))
    watched = Layout.build([Row(text, ((0, 3), (4, 9), (0, 12)))], 2)
    alone = Layout.build([Row(text, ())], 2)
    difference = encoder.hidden_states(watched, how)[:, :12] - encoder.hidden_states(alone, how)
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("how", LOWERINGS)
@torch.inference_mode()
def test_an_observer_of_a_beginning_is_its_embedding(how: Any, tiny_model: Any) -> None:
    """What stands behind a span changes nothing: the text before it is what counts."""
    encoder = tiny_encoder(tiny_model("llama"), 2)
    text = list(range(10, 22))
    observers = encoder(Layout.build([Row(text, ((0, 5), (0, 12), (2, 5)))], 2), how)
    beginning = encoder(Layout.build([Row.whole(text[:5])], 2), how)
    whole = encoder(Layout.build([Row.whole(text)], 2), how)
    assert (observers[0] - beginning[0]).abs().max() < 1e-5
    assert (observers[1] - whole[0]).abs().max() < 1e-5
    assert (observers[2] - beginning[0]).abs().max() > 1e-3


# -- plain causal attention --------------------------------------------------------------------


@pytest.mark.parametrize("how", LOWERINGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_one_special_token_is_plain_causal_attention(
    architecture: str, how: Any, tiny_model: Any, reference_model: Any
) -> None:
    encoder = tiny_encoder(tiny_model(architecture), 1)
    reference = reference_model(architecture)
    text = torch.arange(10, 19)[None]
    embeds = [reference.get_input_embeddings()(text), encoder.special.embeddings[None]]
    expected = reference.base_model(inputs_embeds=torch.cat(embeds, dim=1)).last_hidden_state
    found = encoder.hidden_states(Layout.build([Row.whole(text[0].tolist())], 1), how)
    assert (found - expected).abs().max() < 1e-5


# -- sliding windows ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", LOWERINGS)
def test_a_text_beyond_the_sliding_window_is_refused(how: Any) -> None:
    encoder = tiny_encoder(build_model("mistral", sliding_window=12), 2)
    with pytest.raises(GemError, match=r"window of 12 tokens.*reaches over 13"):
        encoder.hidden_states(Layout.build([Row.whole([5] * 11)], 2), how)


@pytest.mark.parametrize("how", LOWERINGS)
@torch.inference_mode()
def test_the_longest_text_fits_the_sliding_window(how: Any, reference_model: Any) -> None:
    model = build_model("mistral", sliding_window=12)
    encoder = tiny_encoder(model, 2)
    length = max_text_tokens(model.config, 2)
    rows = [Row.whole(list(range(20, 20 + length)))]
    found = encoder.hidden_states(Layout.build(rows, 2), how)
    reference = reference_model("mistral")  # the same weights, a window of thousands
    expected = reference_hidden_states(reference, encoder.special.embeddings, rows, "aligned")
    assert length == 10
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({"sliding_window": 12}, 10),
        ({"sliding_window": None}, 254),
        ({"sliding_window": 4096}, 254),
    ],
)
def test_longest_text(settings: dict[str, Any], longest: int) -> None:
    assert max_text_tokens(build_model("mistral", **settings).config, 2) == longest


def test_an_unused_sliding_window_does_not_shorten_texts() -> None:
    config = build_model("qwen2", use_sliding_window=False, sliding_window=12).config
    assert max_text_tokens(config, 1) == 255


# -- architectures that cannot follow the rule -------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_that_follows_the_rule_is_supported(
    architecture: str, tiny_model: Any
) -> None:
    for how in LOWERINGS:
        check_supported(tiny_encoder(tiny_model(architecture), 2), how)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("bert", {}),
        ("roberta", {}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
)
def test_a_model_that_reads_in_both_directions_is_refused(
    architecture: str, settings: dict[str, Any]
) -> None:
    model = build_model(architecture, **settings)
    with pytest.raises(GemError, match=f"{architecture} .*decoder-only model"):
        check_supported(GemEncoder(model, 1))


def test_a_model_that_mixes_tokens_outside_attention_is_refused() -> None:
    model = build_model("llama")

    def leak(module: Any, inputs: Any, output: Any) -> Any:
        return output + output.flip(1)  # a text token gets what stands behind it

    model.model.layers[0].mlp.register_forward_hook(leak)
    with pytest.raises(GemError, match="outside attention"):
        check_supported(GemEncoder(model, 1))


# -- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", LOWERINGS)
def test_a_suffix_learns_from_text_only_through_special_tokens(how: Any) -> None:
    """Text behind the span is cut off from the suffix altogether."""
    encoder = GemEncoder(build_model("llama"), 2)
    text, suffix = [10, 11, 12, 13, 14, 15, 16, 17], [20, 21]
    hidden = encoder.hidden_states(Layout.build([Row(text, ((0, 5),), suffix)], 2), how)
    hidden[0, -1].sum().backward()
    gradient = encoder.base.get_input_embeddings().weight.grad.abs().sum(dim=1)
    assert (gradient[[*text[:5], *suffix]] > 0).all()
    assert (gradient[text[5:]] == 0).all()
    assert (encoder.special.embeddings.grad.abs().sum(dim=1) > 0).all()
