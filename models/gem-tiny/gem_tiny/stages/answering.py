"""Stage `answering`: further training of the language model, mostly on the other rows."""

from __future__ import annotations

from gem_tiny.stages.language_model import BATCH_TOKENS, train_and_save
from gem_tiny.stages.options import (
    WORK,
    Base,
    BatchTokens,
    Compiled,
    Decay,
    ModelFolder,
    Seed,
    StopAfter,
    Work,
)
from gem_tiny.stages.work_folder import load_sequences, require


def answering(
    work: Work = WORK,
    out: ModelFolder = None,
    base: Base = None,
    steps: int = 1600,
    batch: BatchTokens = BATCH_TOKENS,
    decay: Decay = 0.8,
    stop_after: StopAfter = None,
    compiled: Compiled = True,
    seed: Seed = 1,
) -> None:
    """Train the language model further, mostly to answer from passages and to call tools."""
    from gem_tiny.packing import DataMixture
    from gem_tiny.pretraining import TrainingPlan

    start = require(base or work / "base", "language-model")
    plan = TrainingPlan(steps=steps, decay=decay, seed=seed, matrix_rate=0.003, rate=2e-3)
    mixture = DataMixture(
        load_sequences(work, "documents"),
        load_sequences(work, "more-rows"),
        seed,
        batch,
        row_share=0.85,
        decay_row_share=0.85,
    )
    out = out or work / "answering-base"
    train_and_save(work, "answering", out, plan, mixture, compiled, stop_after, start)
