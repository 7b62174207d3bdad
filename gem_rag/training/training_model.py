"""`TrainingModel`: what the training loop runs; a batch in, losses out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gem_rag.training.batches import Batch, Contrast, Pass
from gem_rag.training.objectives import (
    LogitScale,
    distillation_loss,
    info_nce,
    matryoshka,
    next_token_loss,
    teacher_loss,
)
from gem_rag.training.recipe import Recipe
from gem_rag.training.rows import IGNORED
from gem_rag.training.scopes import TrainableModel


class TrainingModel(nn.Module):
    """An encoder, its logit scale and the recipe's losses.

    With gradient caching a pass keeps only its inputs and runs again in the backward pass, so that
    memory holds one pass's activations whatever the batch (arXiv 2101.06983). It is implemented as
    activation checkpointing around whole passes.
    """

    _keys_to_ignore_on_save = None  # Trainer asks for it when a run resumes

    def __init__(self, trainable: TrainableModel, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = trainable.encoder
        self.logit_scale = LogitScale()
        self.recipe = recipe
        self._trainable = trainable
        # What accelerate shards by layer.
        self._no_split_modules = getattr(trainable.encoder.model, "_no_split_modules", None)
        if recipe.next_token and recipe.next_token.distill:
            trainable.keep_base()

    @property
    def config(self) -> Any:
        """The language model's configuration, which Trainer logs and DeepSpeed reads."""
        return self.encoder.model.config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of this process's share, and its parts.

        Averaged over processes, losses and gradients are those of the whole batch.
        """
        parts: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.encoder.device)
        if batch.next_token:
            predicted, divergence = self._next_token(batch)
            parts["next_token"] = predicted
            loss = loss + (1 - batch.alpha) * predicted
            if self.recipe.next_token and self.recipe.next_token.distill:
                parts["distill"] = divergence
                loss = loss + self.recipe.next_token.distill * divergence
        if batch.contrast:
            contrast = self._contrastive(batch.contrast)
            parts |= contrast
            loss = loss + batch.alpha * sum(contrast.values(), start=torch.zeros_like(loss))
        return {"loss": loss, **parts}

    # -- next-token losses ---------------------------------------------------------------------

    def _next_token(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean loss per predicted token, and mean divergence per token of raw rows."""
        assert self.recipe.next_token is not None
        distill = self.recipe.next_token.distill > 0
        sums = torch.stack([self._run_pass(self._predict, p, distill) for p in batch.next_token])
        counts = torch.tensor([batch.targets, batch.raw_targets], device=sums.device).clamp(min=1)
        means = sums.sum(0) / counts * _processes()
        return means[0], means[1]

    def _predict(self, part: Pass, distill: bool) -> Tensor:
        """Sums of a pass's next-token loss and of its divergence from the base: [2]."""
        head = self.encoder.model.get_output_embeddings()
        labels = torch.as_tensor(part.labels, device=self.encoder.device)
        # Rows end at different positions, and splitting them costs more than a T x T mask.
        hidden = self.encoder.hidden_states(part.layout, "dense")
        loss = next_token_loss(hidden, head, labels, "sum")
        divergence = torch.zeros_like(loss)
        if distill and part.raw.any():
            raw = torch.as_tensor(part.raw, device=labels.device)[:, None] & (labels != IGNORED)
            divergence = distillation_loss(head(hidden[raw]), self._base_logits(part)[raw])
        return torch.stack([loss, divergence])

    @torch.no_grad()
    def _base_logits(self, part: Pass) -> Tensor:
        """The base's predictions, by plain causal attention: right for rows of raw text, which
        are padded on their right. [B, T, vocabulary]"""
        ids = torch.as_tensor(part.layout.ids, device=self.encoder.device)
        with self._trainable.base() as base:
            logits: Tensor = base(ids, use_cache=False).logits
        return logits

    # -- contrastive losses --------------------------------------------------------------------

    def _contrastive(self, contrast: Contrast) -> dict[str, Tensor]:
        settings = self.recipe.contrastive
        assert settings is not None
        own = self.embed(contrast)
        queries = _gather(own[: contrast.queries])
        documents = _gather(own[contrast.queries :])
        scale = self.logit_scale()
        positive = torch.as_tensor(contrast.positive, device=own.device)
        same = torch.as_tensor(contrast.same, device=own.device) if contrast.same.any() else None

        def loss(q: Tensor, d: Tensor) -> Tensor:
            return info_nce(q, d, scale, positive, same)

        parts = {"contrastive": matryoshka(loss, queries, documents, settings.dims)}
        if settings.teacher and contrast.teacher is not None:
            teacher = tuple(torch.as_tensor(v, device=own.device) for v in contrast.teacher)
            near = teacher_loss(queries, documents[positive], (teacher[0], teacher[1]), scale)
            parts["teacher"] = settings.teacher_weight * near
        return parts

    def embed(self, contrast: Contrast) -> Tensor:
        """Unit vectors of this process's rows: queries, documents, negatives; [rows, dim]."""
        vectors = torch.cat([self._run_pass(self._embed, part) for part in contrast.passes])
        inverse = torch.empty(len(contrast.order), dtype=torch.long, device=vectors.device)
        inverse[torch.as_tensor(contrast.order, device=vectors.device)] = torch.arange(
            len(contrast.order), device=vectors.device
        )
        return vectors[inverse]

    def _embed(self, part: Pass) -> Tensor:
        # With activation checkpointing of layers there is no cache of keys and values.
        if self._trainable.scope == "special" and not self.encoder.model.is_gradient_checkpointing:
            return self.encoder.frozen_forward(part.layout)
        vectors: Tensor = self.encoder(part.layout)
        return vectors

    # -- memory --------------------------------------------------------------------------------

    def _run_pass(self, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.recipe.memory.gradient_caching and torch.is_grad_enabled():
            output: Tensor = checkpoint(run, *inputs, use_reentrant=False)
            return output
        return run(*inputs)

    def tie_weights(self) -> None:
        """Make shared weights one again, after sharding took them apart."""
        self.encoder.model.tie_weights()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Any = None, **options: Any
    ) -> None:
        """Checkpoint every layer's activations, as transformers does."""
        kwargs = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        self.encoder.model.gradient_checkpointing_enable(
            {**kwargs, "context_fn": self.encoder.special.checkpoint_contexts}, **options
        )


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gather(own: Tensor) -> Tensor:
    """The rows of all processes, in order of process.

    Every process computes the whole batch's loss, with gradients for its own rows only. Their sum
    is the whole gradient, but data parallelism takes the mean: so gradients are scaled here.
    """
    if _processes() == 1:
        return own
    everyone = [torch.empty_like(own) for _ in range(_processes())]
    dist.all_gather(everyone, own.detach().contiguous())
    everyone[dist.get_rank()] = own + (_processes() - 1) * (own - own.detach())
    return torch.cat(everyone)
