"""Training of the language model: learning rates, and resuming from a state."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from gem_tiny.pretraining import (
    ModelShape,
    TrainingPlan,
    compute_bits_per_token,
    train_language_model,
)
from packed_data import mixture, sequences

from gem_rag.errors import GemError, InputError

SHAPE = ModelShape(
    vocabulary=64, hidden=32, intermediate=64, layers=2, heads=2, kv_heads=1, context=16
)
PLAN = TrainingPlan(steps=8, warmup=2, decay=0.5)


def test_the_rate_rises_stays_and_falls() -> None:
    plan = TrainingPlan(steps=100, warmup=10, decay=0.2)
    shares = [plan.rate_factor(step) for step in range(100)]
    assert shares[0] == 0.1
    assert shares[9:81] == [1.0] * 72
    assert shares[81:] == sorted(shares[81:], reverse=True)
    assert shares[99] == pytest.approx(0.05)


def test_it_learns_and_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = train_language_model(SHAPE, PLAN, mixture(), tmp_path / "whole", compiled=False)
    parts = tmp_path / "parts"
    train_language_model(SHAPE, PLAN, mixture(), parts, compiled=False, stop_after=3)
    # Until the decay begins, the number of steps is free.
    longer = dataclasses.replace(PLAN, steps=20)
    train_language_model(SHAPE, longer, mixture(), parts, compiled=False, stop_after=4)
    resumed = train_language_model(SHAPE, PLAN, mixture(), parts, compiled=False)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    log = [json.loads(line) for line in (parts / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(8))
    untrained = SHAPE.build_model(0)
    assert compute_bits_per_token(whole, sequences(0)) < compute_bits_per_token(
        untrained, sequences(0)
    )
    assert compute_bits_per_token(untrained, sequences(0)) == pytest.approx(math.log2(64), rel=0.05)


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    train_language_model(SHAPE, PLAN, mixture(), tmp_path, compiled=False, stop_after=6)
    with pytest.raises(InputError, match=r"another data\.batch \(128, now 64\) at step 6"):
        train_language_model(SHAPE, PLAN, mixture(64), tmp_path, compiled=False)
    longer = dataclasses.replace(PLAN, steps=20)  # the decay has begun
    with pytest.raises(InputError, match=r"another plan\.steps"):
        train_language_model(SHAPE, longer, mixture(), tmp_path, compiled=False)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    wild = dataclasses.replace(PLAN, matrix_rate=1e30, rate=1e30)
    with pytest.raises(GemError, match="lower rate"):
        train_language_model(SHAPE, wild, mixture(), tmp_path, compiled=False)
