"""Stage `language-model`: training from random weights, on documents and half of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gem_rag import GemConfig
from gem_tiny.prompts import ANSWER_PROMPT
from gem_tiny.stages.options import (
    WORK,
    BatchTokens,
    Compiled,
    Decay,
    ModelFolder,
    Seed,
    StopAfter,
    Work,
)
from gem_tiny.stages.work_folder import load_sequences, load_tokenizer, show

if TYPE_CHECKING:
    from gem_tiny.packing import DataMixture
    from gem_tiny.pretraining import TrainingPlan

BATCH_TOKENS = 16 * 1024


def language_model(
    work: Work = WORK,
    out: ModelFolder = None,
    steps: int = 1800,
    batch: BatchTokens = BATCH_TOKENS,
    decay: Decay = 0.4,
    stop_after: StopAfter = None,
    compiled: Compiled = True,
    seed: Seed = 0,
) -> None:
    """Train the language model, or resume its training, and write it in bfloat16.

    Until the decay begins, the number of steps of a run can be changed.
    """
    from gem_tiny.packing import DataMixture
    from gem_tiny.pretraining import TrainingPlan

    plan = TrainingPlan(steps=steps, decay=decay, seed=seed)
    mixture = DataMixture(
        load_sequences(work, "documents"),
        load_sequences(work, "rows"),
        seed,
        batch,
        row_share=0.25,
        decay_row_share=0.75,
    )
    out = out or work / "base"
    train_and_save(work, "language-model", out, plan, mixture, compiled, stop_after)


def train_and_save(
    work: Path,
    stage: str,
    out: Path,
    plan: TrainingPlan,
    mixture: DataMixture,
    compiled: bool,
    stop_after: int | None,
    start: Path | None = None,
) -> None:
    """Train a stage's language model, or resume its training; save it, and show its loss.

    Args:
        work: The work folder.
        stage: Name of the stage, and of its folder for the state of the run.
        out: Where the model goes.
        plan: Steps and learning rates.
        mixture: The training data.
        compiled: Whether to use `torch.compile`.
        stop_after: Stop after this step.
        start: A folder of initial weights.
    """
    from gem_tiny.pretraining import ModelShape, compute_bits_per_token, train_language_model

    model = train_language_model(
        ModelShape(),
        plan,
        mixture,
        work / stage,
        compiled=compiled,
        progress=True,
        stop_after=stop_after,
        start=start,
    )
    counts = json.loads((work / "sequences.json").read_text(encoding="utf-8"))
    per_token = compute_bits_per_token(model, load_sequences(work, "held-out"))
    per_byte = per_token * counts["tokens"]["held out"] / counts["bytes"]["held out"]
    show({"held-out bits per token": per_token, "held-out bits per byte": per_byte})
    model.bfloat16().save_pretrained(out)
    load_tokenizer(work).save_pretrained(out)
    GemConfig(answer_prompt=ANSWER_PROMPT).save(out)
