"""Rows of the next-token objectives: what stands where, and what each place must predict."""

from __future__ import annotations

import random
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_rag.core.layout import Layout, Role, Row
from gem_rag.training import rows
from gem_rag.training.objectives import next_token_loss

TEXTS = st.lists(st.integers(5, 99), min_size=1, max_size=12)
SEEDS = st.integers(0, 10_000)
ARRANGEMENTS = st.sampled_from(["aligned", "right"])


@given(st.lists(st.tuples(TEXTS, SEEDS), min_size=1, max_size=5), st.integers(1, 3), ARRANGEMENTS)
def test_special_tokens_are_never_targets_and_every_other_token_is(
    texts: list[tuple[list[int], int]], k: int, arrangement: Any
) -> None:
    """Each text and each suffix is predicted whole, but for what nothing stands before."""
    made = [rows.mixed_row(text, random.Random(seed), p_raw=0.3) for text, seed in texts]
    layout = Layout.build(made, k, arrangement)
    labels = rows.next_token_labels(layout)
    role = layout.tokens.role
    assert (labels[role == Role.PAD] == rows.IGNORED).all()
    for number, row in enumerate(made):
        here = np.arange(len(made))[:, None] == number
        here = np.broadcast_to(here, layout.shape)
        in_order = np.argsort(layout.tokens.position[here & (role != Role.PAD)], kind="stable")
        found = labels[here & (role != Role.PAD)][in_order]
        predicted = [int(label) for label in found if label != rows.IGNORED]
        assert predicted == [*row.text[1:], *row.suffix]
        specials = labels[here & (role == Role.SPECIAL)]
        assert (specials[:-1] == rows.IGNORED).all()
        if row.suffix:
            assert specials[-1] == row.suffix[0]


@given(st.lists(st.integers(5, 99), min_size=2, max_size=30), SEEDS)
def test_kinds_of_rows(text: list[int], seed: int) -> None:
    rng = random.Random(seed)
    assert rows.raw_row(text) == Row(text, ())
    assert rows.reconstruction_row(text) == Row(text, ((0, len(text)),), text)
    split = rows.random_split_row(text, rng)
    assert [*split.text, *split.suffix] == text
    assert split.spans == ((0, len(split.text)),)
    assert len(split.suffix) >= 1
    assert rows.mixed_row(text, rng, p_raw=1.0) == rows.raw_row(text)
    assert rows.mixed_row(text, rng, p_raw=0.0, p_split=0.0) == rows.reconstruction_row(text)
    assert rows.mixed_row(text[:1], rng, p_raw=0.0) == rows.raw_row(text[:1])


def test_shares_of_rows_are_those_asked_for() -> None:
    rng = random.Random(0)
    made = [rows.mixed_row([5, 6, 7], rng, p_raw=0.8) for _ in range(4000)]
    raw = sum(not row.spans for row in made) / 4000
    rebuilt = sum(list(row.text) == list(row.suffix) for row in made) / 4000
    assert raw == pytest.approx(0.8, abs=0.02)
    assert rebuilt == pytest.approx(0.1, abs=0.02)


@given(TEXTS, SEEDS, st.floats(0, 1))
def test_dropped_tokens_leave_a_part_in_order(text: list[int], seed: int, rate: float) -> None:
    kept = rows.drop_tokens(text, random.Random(seed), rate)
    assert kept
    remaining = iter(text)
    assert all(token in remaining for token in kept)  # a subsequence
    assert rows.drop_tokens(text, random.Random(seed), 0.0) == text


@given(TEXTS, TEXTS, st.integers(1, 3), st.integers(8, 20))
def test_rows_fit_the_model(text: list[int], suffix: list[int], k: int, places: int) -> None:
    whole = Row.whole(text, suffix)
    row = rows.shorten_to_fit(whole, k, places)
    assert row.length(k) == min(whole.length(k), places)
    assert row == Row.whole(text[: len(row.text)], suffix[: len(row.suffix)])
    assert row.suffix
    assert row.text
    fitting = rows.raw_row(text[:places])
    assert rows.shorten_to_fit(fitting, k, places) == fitting


def test_next_token_loss_of_raw_rows_is_that_of_transformers(tiny_model: Any) -> None:
    model = tiny_model("llama")
    encoder = helpers.tiny_encoder(model, k=1)
    text = helpers.random_ids(12, torch.Generator().manual_seed(0))
    layout = Layout.build([rows.raw_row(text)], 1)
    hidden = encoder.hidden_states(layout)
    labels = torch.as_tensor(rows.next_token_labels(layout))
    found = next_token_loss(hidden, model.get_output_embeddings(), labels)
    ids = torch.tensor([text])
    assert float(found) == pytest.approx(float(model(ids, labels=ids).loss), abs=1e-5)


@settings(max_examples=25)
@given(
    lengths=st.tuples(st.integers(2, 10), st.integers(1, 6)),
    cut=st.floats(0, 1),
    k=st.integers(1, 3),
    how=st.sampled_from([("right", "dense"), ("aligned", "dense"), ("aligned", "split")]),
)
def test_suffix_loss_reaches_the_text_through_special_tokens_only(
    tiny_model: Any, lengths: tuple[int, int], cut: float, k: int, how: Any
) -> None:
    """With the special tokens' span cut short, no gradient at all reaches what it leaves out."""
    model = tiny_model("qwen2")
    encoder = helpers.tiny_encoder(model, k)
    n, m = lengths
    arrangement, lowering = how
    ids = helpers.random_ids(n + m, torch.Generator().manual_seed(1))
    span = (0, max(1, round(cut * n)))
    # Beside a longer row, so that there is padding too.
    layout = Layout.build([Row(ids[:n], (span,), ids[n:]), rows.raw_row(ids * 2)], k, arrangement)
    labels = torch.as_tensor(rows.next_token_labels(layout))
    predicted = torch.as_tensor(layout.tokens.role != Role.TEXT)
    labels[~predicted | torch.tensor([[False], [True]])] = rows.IGNORED  # the suffix's own only

    inputs: list[torch.Tensor] = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(
        lambda module, args, output: inputs.append(output.detach().requires_grad_()) or inputs[-1]
    )
    try:
        hidden = encoder.hidden_states(layout, lowering)
    finally:
        hook.remove()
    next_token_loss(hidden, model.get_output_embeddings(), labels).backward()
    reached = inputs[0].grad.abs().sum(dim=-1) > 0
    assert reached[0, :n].tolist() == [place < span[1] for place in range(n)]
    assert not reached[1].any()
