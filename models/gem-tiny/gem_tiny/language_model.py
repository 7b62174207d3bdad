"""Trains gem-tiny's language model, from nothing or from weights.

Matrices are trained by Muon, the rest by AdamW. The rate rises, stays, and falls to zero in the
last part of the steps, in which rows are many: until that part begins, a run can be given more
steps or fewer. A run that goes on from its state ends in the same weights as one that was never
interrupted.

Knows nothing about text: it is given sequences of tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from gem_rag._utils.progress import progress_bar
from gem_rag.errors import GemError, InputError
from gem_tiny.sequences import Mixture, Sequences

_STATE = "state.pt"
_MICRO = 4096  # tokens at once: their logits are what takes memory
_MAY_CHANGE = ("steps", "decay", "decay_row_share")  # until the decay begins


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings."""

    vocabulary: int = 8192
    hidden: int = 256
    intermediate: int = 768
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    context: int = 1024

    def model(self, seed: int) -> LlamaForCausalLM:
        """Such a model, at random."""
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
        return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Plan:
    """A run's steps and rates.

    decay: part of the steps in which the rate falls to zero.
    matrix_rate, rate: of Muon, matched to AdamW's size of updates; of AdamW.
    """

    steps: int = 1800
    warmup: int = 100
    decay: float = 0.4
    matrix_rate: float = 0.006
    rate: float = 4e-3
    weight_decay: float = 0.1
    seed: int = 0

    @property
    def decay_from(self) -> int:
        """The first step of the decay."""
        return self.steps - round(self.steps * self.decay)

    def share(self, step: int) -> float:
        """Of the highest rate, at a step: warm-up, stable, decay."""
        left = (self.steps - step) / max(1, self.steps - self.decay_from)
        return min(1.0, (step + 1) / self.warmup, left)


def train(
    shape: Shape,
    plan: Plan,
    mixture: Mixture,
    state: Path,
    *,
    save_every: float = 300,
    compiled: bool = True,
    progress: bool = False,
    stop_after: int | None = None,
    start: Path | None = None,
) -> LlamaForCausalLM:
    """Train, or go on from the state in the folder `state`.

    start: a folder of weights to begin with; None begins at random.
    save_every: seconds between states.
    stop_after: leave off after this step, saved; to go on another time.

    Raises InputError if the folder holds the state of another run, and GemError if the loss is
    not a number; the last state stays.
    """
    model = shape.model(plan.seed) if start is None else _begun(start)
    optimizers = _optimizers(model, plan)
    settings = {"shape": asdict(shape), "plan": asdict(plan), "data": mixture.settings()}
    step = _resume(state, settings, model, optimizers)
    end = min(plan.steps, stop_after or plan.steps)
    loss_of: Callable[..., Tensor] = torch.compile(_loss, dynamic=False) if compiled else _loss
    saved = time.monotonic()
    with (
        progress_bar("language model", plan.steps, progress) as advance,
        _log(state / "log.jsonl") as log,
    ):
        advance(step)
        for now in range(step, end):
            began = time.monotonic()
            loss = _step(model, loss_of, optimizers, plan, mixture, now)
            if not math.isfinite(loss):
                raise GemError(
                    f"the loss of step {now} is {loss}: resume with a lower rate, or another seed"
                )
            log({"step": now, "loss": loss, "seconds": time.monotonic() - began})
            advance(1, f"language model: loss {loss:.3f}")
            if time.monotonic() - saved > save_every or now + 1 == end:
                _save(state, settings, now + 1, model, optimizers)
                saved = time.monotonic()
    return model


def _begun(folder: Path) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.train()


def bits_per_token(model: LlamaForCausalLM, sequences: Sequences) -> float:
    """Mean over every target that counts."""
    total, counted = 0.0, 0.0
    with torch.inference_mode():
        for tokens, weights in _parts(sequences.tokens.astype(np.int64), sequences.weights):
            total += float(_loss(model, tokens, weights))
            counted += float(weights[:, 1:].sum())
    return total / counted / math.log(2)


def _loss(model: nn.Module, tokens: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the targets' losses, in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    targets = tokens[:, 1:].flatten()
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def _step(
    model: nn.Module,
    loss_of: Callable[..., Tensor],
    optimizers: list[torch.optim.Optimizer],
    plan: Plan,
    mixture: Mixture,
    step: int,
) -> float:
    """One update; returns the loss before it, in nats per counted token."""
    parts = [part for group in mixture.at(step, plan.decay_from) for part in _parts(*group)]
    counted = torch.stack([weights[:, 1:].sum() for _, weights in parts]).sum()
    total = 0.0
    for part, counts in parts:
        loss = loss_of(model, part, counts) / counted
        loss.backward()
        total += float(loss.detach())
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * plan.share(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def _parts(tokens: Any, weights: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens, weights) of as many sequences as are read at once."""
    count = max(1, _MICRO // (tokens.shape[1] - 1))
    both = torch.from_numpy(tokens), torch.from_numpy(weights).float()
    return zip(*(part.split(count) for part in both), strict=True)


def _optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embeddings and the norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    rest = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    muon = torch.optim.Muon(
        matrices,
        lr=plan.matrix_rate,
        weight_decay=plan.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(rest, lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return [muon, adamw]


# -- the run's state -----------------------------------------------------------------------------


def _save(
    folder: Path,
    settings: dict[str, Any],
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    part = folder / f"{_STATE}.part"
    state = {
        "settings": settings,
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(state, part)
    part.rename(folder / _STATE)


def _resume(
    folder: Path,
    settings: dict[str, Any],
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
) -> int:
    """Load the folder's state, if there is one; the step to go on with."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _STATE).exists():
        return 0
    state = torch.load(folder / _STATE, weights_only=True)
    step = int(state["step"])
    _check(folder, state["settings"], settings, step)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return step


def _check(folder: Path, before: dict[str, Any], now: dict[str, Any], step: int) -> None:
    plans = [Plan(**settings["plan"]) for settings in (before, now)]
    free = _MAY_CHANGE if all(step <= plan.decay_from for plan in plans) else ()
    for part, values in now.items():
        for name, value in values.items():
            if before[part][name] != value and name not in free:
                raise InputError(
                    f"{folder} holds a run with another {part}.{name} ({before[part][name]!r}, now "
                    f"{value!r}) at step {step}: use the same, or another folder"
                )


@contextmanager
def _log(file: Path) -> Iterator[Callable[[dict[str, float]], None]]:
    """Appends lines of JSON."""
    with file.open("a", encoding="utf-8") as lines:

        def log(entry: dict[str, float]) -> None:
            lines.write(json.dumps(entry) + "\n")
            lines.flush()

        yield log
