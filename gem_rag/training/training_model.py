"""The model as the training loop sees it: a batch in, losses out.

Knows nothing about data files, optimisers or the training loop.
"""

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

    With gradient caching a pass keeps its inputs only and runs again on the way back, so that
    memory holds one pass's activations whatever the batch (arXiv 2101.06983). That is activation
    checkpointing around whole passes, and what does it here.
    """

    _keys_to_ignore_on_save = None  # Trainer asks for it when a run resumes

    def __init__(self, tuned: TrainableModel, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = tuned.encoder
        self.logit_scale = LogitScale()
        self.recipe = recipe
        self._tuned = tuned
        # What accelerate shards by.
        self._no_split_modules = getattr(tuned.encoder.model, "_no_split_modules", None)
        if recipe.next_token and recipe.next_token.distill:
            tuned.keep_base()

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
        distil = self.recipe.next_token.distill > 0
        sums = torch.stack([self._cached(self._predict, p, distil) for p in batch.next_token])
        counts = torch.tensor([batch.targets, batch.raw_targets], device=sums.device).clamp(min=1)
        means = sums.sum(0) / counts * _processes()
        return means[0], means[1]

    def _predict(self, part: Pass, distil: bool) -> Tensor:
        """Sums of a pass's next-token loss and of its divergence from the base: [2]."""
        head = self.encoder.model.get_output_embeddings()
        labels = torch.as_tensor(part.labels, device=self.encoder.device)
        # Rows end at different places, and splitting them costs more than a T x T mask.
        hidden = self.encoder.hidden_states(part.layout, "dense")
        loss = next_token_loss(hidden, head, labels, "sum")
        divergence = torch.zeros_like(loss)
        if distil and part.raw.any():
            raw = torch.as_tensor(part.raw, device=labels.device)[:, None] & (labels != IGNORED)
            divergence = distillation_loss(head(hidden[raw]), self._base_logits(part)[raw])
        return torch.stack([loss, divergence])

    @torch.no_grad()
    def _base_logits(self, part: Pass) -> Tensor:
        """The base's predictions, by plain causal attention: right for rows of raw text, which
        are padded on their right. [B, T, vocabulary]"""
        ids = torch.as_tensor(part.layout.ids, device=self.encoder.device)
        with self._tuned.base() as base:
            logits: Tensor = base(ids, use_cache=False).logits
        return logits

    # -- contrastive losses --------------------------------------------------------------------

    def _contrastive(self, contrast: Contrast) -> dict[str, Tensor]:
        settings = self.recipe.contrastive
        assert settings is not None
        own = self.embed(contrast)
        queries = _gathered(own[: contrast.queries])
        documents = _gathered(own[contrast.queries :])
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
        vectors = torch.cat([self._cached(self._embed, part) for part in contrast.passes])
        inverse = torch.empty(len(contrast.order), dtype=torch.long, device=vectors.device)
        inverse[torch.as_tensor(contrast.order, device=vectors.device)] = torch.arange(
            len(contrast.order), device=vectors.device
        )
        return vectors[inverse]

    def _embed(self, part: Pass) -> Tensor:
        # With layers checkpointed there is no cache of keys and values to go by.
        if self._tuned.scope == "special" and not self.encoder.model.is_gradient_checkpointing:
            return self.encoder.frozen_forward(part.layout)
        vectors: Tensor = self.encoder(part.layout)
        return vectors

    # -- memory --------------------------------------------------------------------------------

    def _cached(self, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
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
        """Keep layers' inputs only, as transformers does it."""
        kwargs = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        self.encoder.model.gradient_checkpointing_enable(
            {**kwargs, "context_fn": self.encoder.special.checkpoint_contexts}, **options
        )


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gathered(own: Tensor) -> Tensor:
    """All processes' rows, in order of process.

    Every process computes the whole batch's loss, with gradients to its own rows only. Their sum
    is the whole gradient, and data parallelism takes the mean: so they are multiplied here.
    """
    if _processes() == 1:
        return own
    everyone = [torch.empty_like(own) for _ in range(_processes())]
    dist.all_gather(everyone, own.detach().contiguous())
    everyone[dist.get_rank()] = own + (_processes() - 1) * (own - own.detach())
    return torch.cat(everyone)
