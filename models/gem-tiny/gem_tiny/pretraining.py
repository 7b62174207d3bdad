"""Training of gem-tiny's language model, from random weights or from a checkpoint.

Muon trains the matrices of the layers, AdamW everything else. The learning rate warms up, stays
constant, and decays linearly to zero at the end (warmup-stable-decay), when most of the data are
rows: until the decay begins, the number of steps can be changed. An interrupted run that is resumed
ends with the same weights as one that was not.
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
from gem_tiny.files import replace_file
from gem_tiny.packing import DataMixture, PackedSequences

_STATE = "state.pt"
_MICROBATCH_TOKENS = 4096  # bounds the memory that logits take
_CHANGEABLE = ("steps", "decay", "decay_row_share")  # until the decay begins


@dataclass(frozen=True)
class ModelShape:
    """The shape of a Llama with tied embeddings.

    Attributes:
        vocabulary: Size of the vocabulary.
        hidden: Hidden size.
        intermediate: Hidden size of the feed-forward networks.
        layers: Number of layers.
        heads: Number of attention heads.
        kv_heads: Number of key/value heads.
        context: Context length in tokens.
    """

    vocabulary: int = 8192
    hidden: int = 256
    intermediate: int = 768
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    context: int = 1024

    def build_model(self, seed: int) -> LlamaForCausalLM:
        """Build the model with random weights."""
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
class TrainingPlan:
    """Steps and learning rates of a run.

    Attributes:
        steps: Number of steps.
        warmup: Steps in which the rates rise.
        decay: Share of the steps in which they fall to zero.
        matrix_rate: Learning rate of Muon, scaled to the update size of AdamW.
        rate: Learning rate of AdamW.
        weight_decay: Weight decay of Muon.
        seed: Seed of the initial weights.
    """

    steps: int = 1800
    warmup: int = 100
    decay: float = 0.4
    matrix_rate: float = 0.006
    rate: float = 4e-3
    weight_decay: float = 0.1
    seed: int = 0

    @property
    def decay_start(self) -> int:
        """The first step of the decay."""
        return self.steps - round(self.steps * self.decay)

    def rate_factor(self, step: int) -> float:
        """The learning rate at a step, relative to the highest."""
        decay = (self.steps - step) / max(1, self.steps - self.decay_start)
        return min(1.0, (step + 1) / self.warmup, decay)


def train_language_model(
    shape: ModelShape,
    plan: TrainingPlan,
    mixture: DataMixture,
    state: Path,
    *,
    save_every: float = 300,
    compiled: bool = True,
    progress: bool = False,
    stop_after: int | None = None,
    start: Path | None = None,
) -> LlamaForCausalLM:
    """Train a language model, or resume its training.

    Args:
        shape: The shape of the model.
        plan: Steps and learning rates.
        mixture: The training data.
        state: The folder of the run's state and log; an existing state is resumed.
        save_every: Seconds between saved states.
        compiled: Whether to use `torch.compile`.
        progress: Whether to show a progress bar.
        stop_after: Stop after this step, with the state saved.
        start: A folder of initial weights; by default they are random.

    Returns:
        The model.

    Raises:
        InputError: The folder holds the state of a run with other settings.
        GemError: The loss is not finite; the last saved state remains.
    """
    model = shape.build_model(plan.seed) if start is None else _load_model(start)
    optimizers = _build_optimizers(model, plan)
    settings = {"shape": asdict(shape), "plan": asdict(plan), "data": mixture.settings()}
    first = _restore_state(state, settings, model, optimizers)
    end = min(plan.steps, stop_after or plan.steps)
    loss_function: Callable[..., Tensor] = (
        torch.compile(_weighted_loss, dynamic=False) if compiled else _weighted_loss
    )
    saved_at = time.monotonic()
    with (
        progress_bar("language model", plan.steps, progress) as advance,
        _open_log(state / "log.jsonl") as log,
    ):
        advance(first)
        for step in range(first, end):
            started_at = time.monotonic()
            loss = _train_step(model, loss_function, optimizers, plan, mixture, step)
            if not math.isfinite(loss):
                raise GemError(
                    f"the loss of step {step} is {loss}: resume with a lower rate, or another seed"
                )
            log({"step": step, "loss": loss, "seconds": time.monotonic() - started_at})
            advance(1, f"language model: loss {loss:.3f}")
            if time.monotonic() - saved_at > save_every or step + 1 == end:
                _save_state(state, settings, step + 1, model, optimizers)
                saved_at = time.monotonic()
    return model


def _load_model(folder: Path) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.train()


def compute_bits_per_token(model: LlamaForCausalLM, sequences: PackedSequences) -> float:
    """The mean loss of a model on sequences, weighted, in bits per token."""
    total, total_weight = 0.0, 0.0
    with torch.inference_mode():
        for tokens, weights in _split_batch(sequences.tokens.astype(np.int64), sequences.weights):
            total += float(_weighted_loss(model, tokens, weights))
            total_weight += float(weights[:, 1:].sum())
    return total / total_weight / math.log(2)


def _weighted_loss(model: nn.Module, tokens: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the cross-entropies of all targets, in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    targets = tokens[:, 1:].flatten()
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def _train_step(
    model: nn.Module,
    loss_function: Callable[..., Tensor],
    optimizers: list[torch.optim.Optimizer],
    plan: TrainingPlan,
    mixture: DataMixture,
    step: int,
) -> float:
    """Update the weights once; returns the loss before the update, in nats per unit of weight."""
    batch = mixture.batch_at(step, plan.decay_start)
    microbatches = [part for arrays in batch for part in _split_batch(*arrays)]
    total_weight = torch.stack([weights[:, 1:].sum() for _, weights in microbatches]).sum()
    total = 0.0
    for tokens, weights in microbatches:
        loss = loss_function(model, tokens, weights) / total_weight
        loss.backward()
        total += float(loss.detach())
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * plan.rate_factor(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def _split_batch(tokens: Any, weights: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Split arrays [n, length + 1] into the tokens and weights of microbatches."""
    count = max(1, _MICROBATCH_TOKENS // (tokens.shape[1] - 1))
    tensors = torch.from_numpy(tokens), torch.from_numpy(weights).float()
    return zip(*(tensor.split(count) for tensor in tensors), strict=True)


def _build_optimizers(model: nn.Module, plan: TrainingPlan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
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


# -- state of a run ------------------------------------------------------------------------------


def _save_state(
    folder: Path,
    settings: dict[str, Any],
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    state = {
        "settings": settings,
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    with replace_file(folder / _STATE) as temporary:
        torch.save(state, temporary)


def _restore_state(
    folder: Path,
    settings: dict[str, Any],
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
) -> int:
    """Restore the state in the folder, if there is one; returns the step to go on with."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _STATE).exists():
        return 0
    state = torch.load(folder / _STATE, weights_only=True)
    step = int(state["step"])
    _check_settings(folder, state["settings"], settings, step)
    model.load_state_dict(state["model"])
    for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    return step


def _check_settings(folder: Path, saved: dict[str, Any], now: dict[str, Any], step: int) -> None:
    plans = [TrainingPlan(**settings["plan"]) for settings in (saved, now)]
    changeable = _CHANGEABLE if all(step <= plan.decay_start for plan in plans) else ()
    for part, values in now.items():
        for name, value in values.items():
            if saved[part][name] != value and name not in changeable:
                raise InputError(
                    f"{folder} holds a run with another {part}.{name} ({saved[part][name]!r}, now "
                    f"{value!r}) at step {step}: use the same, or another folder"
                )


@contextmanager
def _open_log(path: Path) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that appends to a JSON Lines file."""
    with path.open("a", encoding="utf-8") as lines:

        def log(entry: dict[str, float]) -> None:
            lines.write(json.dumps(entry) + "\n")
            lines.flush()

        yield log
