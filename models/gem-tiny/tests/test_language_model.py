"""Training gem-tiny's language model: batches, rates, and going on from a state."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gem_tiny.language_model import Plan, Shape, bits_per_token, train
from gem_tiny.sequences import Mixture, Sequences, documents, rows

from gem_rag.errors import GemError, InputError

SHAPE = Shape(vocabulary=64, hidden=32, intermediate=64, layers=2, heads=2, kv_heads=1, context=16)
PLAN = Plan(steps=8, warmup=2, decay=0.5)


def sequences(seed: int, count: int = 24, length: int = 16) -> Sequences:
    tokens = np.random.default_rng(seed).integers(0, 64, (count, length + 1)).astype(np.uint16)
    return Sequences(tokens, np.ones((count, length + 1), np.uint8))


def mixture(batch: int = 128) -> Mixture:
    return Mixture(sequences(0, 48, 8), sequences(1), 0, batch, row_share=0.25, decay_row_share=0.5)


def test_documents_are_one_stream() -> None:
    found = documents([[5, 6, 7], [8], [9, 10, 11, 12]], length=3, end=1)
    assert found.tokens.tolist() == [[5, 6, 7, 1], [1, 8, 1, 9], [9, 10, 11, 12]]
    assert found.weights.all()


def test_rows_stay_whole() -> None:
    pairs = [([5, 6], [7]), ([8], [9]), ([4] * 20, [4]), ([5], [5, 5])]
    found = rows(pairs, length=7, end=1, pad=2, weight=9)
    assert found.tokens.tolist() == [[5, 6, 7, 1, 8, 9, 1, 2], [5, 5, 5, 1, 2, 2, 2, 2]]
    assert found.weights.tolist() == [[1, 1, 9, 9, 1, 9, 9, 0], [1, 9, 9, 9, 0, 0, 0, 0]]


def test_sequences_are_kept(tmp_path: Path) -> None:
    found = sequences(0)
    found.save(tmp_path / "documents.npz")
    again = Sequences.load(tmp_path / "documents.npz")
    assert again.hash() == found.hash() != sequences(1).hash()
    assert [file.name for file in tmp_path.iterdir()] == ["documents.npz"]


def test_every_sequence_is_read_once_an_epoch() -> None:
    data = mixture()
    read, again = ([made.at(step, decay_from=4) for step in range(8)] for made in (data, mixture()))
    for one, other in zip(read, again, strict=True):
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
    # Of 128 tokens a quarter is of rows of 16 tokens, then half; the others are documents of 8.
    counts = [tuple(len(tokens) for tokens, _ in step) for step in read]
    assert counts == [(2, 12)] * 4 + [(4, 8)] * 4
    for group, source, steps in ((0, data.rows, 8), (1, data.documents, 4)):
        seen = np.concatenate([step[group][0] for step in read[:steps]])
        assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, source.tokens.tolist()))


def test_the_rate_rises_stays_and_falls() -> None:
    plan = Plan(steps=100, warmup=10, decay=0.2)
    shares = [plan.share(step) for step in range(100)]
    assert shares[0] == 0.1
    assert shares[9:81] == [1.0] * 72
    assert shares[81:] == sorted(shares[81:], reverse=True)
    assert shares[99] == pytest.approx(0.05)


def test_it_learns_and_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = train(SHAPE, PLAN, mixture(), tmp_path / "whole", compiled=False)
    parts = tmp_path / "parts"
    train(SHAPE, PLAN, mixture(), parts, compiled=False, stop_after=3)
    # Until the decay begins, the number of steps is free.
    longer = dataclasses.replace(PLAN, steps=20)
    train(SHAPE, longer, mixture(), parts, compiled=False, stop_after=4)
    resumed = train(SHAPE, PLAN, mixture(), parts, compiled=False)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    log = [json.loads(line) for line in (parts / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(8))
    untrained = SHAPE.model(0)
    assert bits_per_token(whole, sequences(0)) < bits_per_token(untrained, sequences(0))
    assert bits_per_token(untrained, sequences(0)) == pytest.approx(math.log2(64), rel=0.05)


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    train(SHAPE, PLAN, mixture(), tmp_path, compiled=False, stop_after=6)
    with pytest.raises(InputError, match=r"another data\.batch \(128, now 64\) at step 6"):
        train(SHAPE, PLAN, mixture(64), tmp_path, compiled=False)
    longer = dataclasses.replace(PLAN, steps=20)  # the decay has begun
    with pytest.raises(InputError, match=r"another plan\.steps"):
        train(SHAPE, longer, mixture(), tmp_path, compiled=False)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    wild = dataclasses.replace(PLAN, matrix_rate=1e30, rate=1e30)
    with pytest.raises(GemError, match="lower rate"):
        train(SHAPE, wild, mixture(), tmp_path, compiled=False)
