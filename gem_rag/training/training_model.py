"""`TrainingModel`: a batch in, losses out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gem_rag.core.layout import Layout, group_to_fit
from gem_rag.core.memory import pass_tokens
from gem_rag.training.batches import Batch, Contrast, Pass
from gem_rag.training.objectives import (
    LogitScale,
    alignment_loss,
    distillation_loss,
    info_nce,
    matryoshka,
    next_token_loss,
    spread_out_loss,
    teacher_loss,
)
from gem_rag.training.recipe import Recipe
from gem_rag.training.rows import IGNORED
from gem_rag.training.schedule import only_aligns
from gem_rag.training.scopes import TrainableModel


class TrainingModel(nn.Module):
    """An encoder, its logit scale and the recipe's losses.

    With gradient caching a pass keeps only its inputs and runs again in the backward pass, so that
    memory holds one pass's activations whatever the batch (arXiv 2101.06983). It is implemented as
    activation checkpointing around whole passes.

    Args:
        trainable: The model, prepared for the recipe's scope.
        recipe: The recipe.
        teacher_dim: Length of the teacher's vectors, if there is one.
    """

    _keys_to_ignore_on_save = None  # Trainer reads it when a run resumes

    def __init__(
        self, trainable: TrainableModel, recipe: Recipe, teacher_dim: int | None = None
    ) -> None:
        super().__init__()
        self.encoder = trainable.encoder
        self.logit_scale = LogitScale()
        if recipe.contrastive is not None:
            temperature = recipe.contrastive.temperature
            self.logit_scale = LogitScale(1 / temperature.initial, 1 / temperature.least)
        # To a teacher's vectors; in the run's state, and not in the trained model.
        self.projection: nn.Linear | None = None
        if recipe.contrastive is not None and recipe.contrastive.align and teacher_dim is not None:
            device = self.encoder.device
            self.projection = nn.Linear(self.encoder.dim, teacher_dim, bias=False, device=device)
        self.recipe = recipe
        self._trainable = trainable
        # The layers that accelerate shards.
        self._no_split_modules = getattr(trainable.encoder.model, "_no_split_modules", None)
        if recipe.next_token and recipe.next_token.distill:
            trainable.keep_base()

    @property
    def config(self) -> Any:
        """The language model's configuration, which Trainer logs and DeepSpeed reads."""
        return self.encoder.model.config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss of this process's share of a batch.

        Args:
            batch: The batch.

        Returns:
            Scalars in nats: "loss", and its parts by name. Averaged over processes, they and their
            gradients are those of the whole batch.
        """
        parts: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.encoder.device)
        if batch.next_token:
            next_token, divergence = self._next_token_losses(batch)
            parts["next_token"] = next_token
            loss = loss + (1 - batch.alpha) * next_token
            if self.recipe.next_token and self.recipe.next_token.distill:
                parts["distill"] = divergence
                loss = loss + self.recipe.next_token.distill * divergence
        if batch.contrast:
            contrastive = self._contrastive_losses(batch.contrast, batch.step)
            parts |= contrastive
            loss = loss + batch.alpha * sum(contrastive.values(), start=torch.zeros_like(loss))
        return {"loss": loss, **parts}

    # -- next-token losses ---------------------------------------------------------------------

    def _next_token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean loss per predicted token, and mean divergence per token of raw rows."""
        assert self.recipe.next_token is not None
        distill = self.recipe.next_token.distill > 0
        sums = torch.stack([self._run_pass(self._sum_losses, p, distill) for p in batch.next_token])
        counts = torch.tensor([batch.num_targets, batch.num_raw_targets], device=sums.device).clamp(
            min=1
        )
        means = sums.sum(0) / counts * _world_size()
        return means[0], means[1]

    def _sum_losses(self, part: Pass, distill: bool) -> Tensor:
        """Sums of a pass's next-token loss and of its divergence from the base: [2]."""
        head = self.encoder.model.get_output_embeddings()
        labels = torch.as_tensor(part.labels, device=self.encoder.device)
        # Rows end at different positions, and splitting them costs more than a T x T mask.
        hidden = self.encoder.hidden_states(part.layout, "dense")
        loss = next_token_loss(hidden, head, labels, "sum")
        divergence = torch.zeros_like(loss)
        if distill and part.raw.any():
            is_raw = torch.as_tensor(part.raw, device=labels.device)[:, None]
            predicts = is_raw & (labels != IGNORED)
            divergence = distillation_loss(
                head(hidden[predicts]), self._base_logits(part)[predicts]
            )
        return torch.stack([loss, divergence])

    @torch.no_grad()
    def _base_logits(self, part: Pass) -> Tensor:
        """The base's predictions [B, T, vocabulary], by plain causal attention: correct for raw
        rows, which are padded on the right."""
        ids = torch.as_tensor(part.layout.ids, device=self.encoder.device)
        with self._trainable.base() as base:
            logits: Tensor = base(ids, use_cache=False).logits
        return logits

    # -- contrastive losses --------------------------------------------------------------------

    def _contrastive_losses(self, contrast: Contrast, step: int) -> dict[str, Tensor]:
        settings = self.recipe.contrastive
        assert settings is not None
        vectors = self.embed(contrast)
        device = vectors.device
        queries = _gather(vectors[: contrast.num_queries])
        documents = _gather(vectors[contrast.num_queries :])
        positive = torch.as_tensor(contrast.positive, device=device)
        own = documents[positive]
        parts: dict[str, Tensor] = {}
        if settings.teacher and contrast.teacher is not None:
            teacher = [torch.as_tensor(v, device=device) for v in contrast.teacher]
            if self.projection is not None:
                align = partial(self._align, teacher=torch.cat(teacher))
                parts["align"] = settings.align * matryoshka(align, queries, own, settings.dims)
            if settings.teacher_weight:
                divergence = teacher_loss(
                    queries, own, (teacher[0], teacher[1]), self.logit_scale()
                )
                parts["teacher"] = settings.teacher_weight * divergence
        if "align" in parts and only_aligns(self.recipe, step):
            # The scale is in the graph, since sharded training wants a gradient of every weight.
            return {"align": parts["align"] + 0 * self.logit_scale()}
        false_negatives = None
        if contrast.false_negatives.any():
            false_negatives = torch.as_tensor(contrast.false_negatives, device=device)
        nce = partial(
            info_nce,
            scale=self.logit_scale(),
            positive=positive,
            false_negatives=false_negatives,
            margin=settings.false_negative_margin,
            hardness=settings.hardness,
            both_ways=settings.both_ways,
        )
        parts["contrastive"] = matryoshka(nce, queries, documents, settings.dims)
        if settings.spread:
            spread = partial(spread_out_loss, positive=positive, false_negatives=false_negatives)
            parts["spread"] = settings.spread * matryoshka(
                spread, queries, documents, settings.dims
            )
        return parts

    def _align(self, queries: Tensor, documents: Tensor, teacher: Tensor) -> Tensor:
        """Alignment of queries, then documents [2 n, teacher_dim]; shortened ones are mapped by the
        projection's first columns."""
        assert self.projection is not None
        vectors = torch.cat([queries, documents])
        projected = F.linear(vectors, self.projection.weight[:, : vectors.shape[1]])
        return alignment_loss(projected, teacher)

    def embed(self, contrast: Contrast) -> Tensor:
        """Unit vectors of this process's rows: queries, documents, negatives; [rows, dim]."""
        layouts = [part.layout for part in contrast.passes]
        # With activation checkpointing the keys and values of a layer are not kept; sharded weights
        # that a first half used are gone when the second half's gradients reach it.
        sharded = self._trainable.scope != "special" and _world_size() > 1
        if sharded or self.encoder.model.is_gradient_checkpointing:
            outputs = [self._run_pass(self.encoder, layout) for layout in layouts]
        else:
            outputs = [self._run_pass(self._embed, chunk) for chunk in self._chunks(layouts)]
        vectors = torch.cat(outputs)
        return vectors[torch.as_tensor(contrast.order, device=vectors.device).argsort()]

    def _embed(self, layouts: list[Layout]) -> Tensor:
        # Processes that share a model's weights must run as many passes as each other.
        pass_tokens = 0 if _world_size() > 1 else self._pass_tokens
        return self.encoder.embed_in_halves(
            layouts, frozen_texts=self._trainable.scope == "special", pass_tokens=pass_tokens
        )

    def _chunks(self, layouts: list[Layout]) -> list[list[Layout]]:
        """What is embedded at once: everything, or with gradient caching what a pass may hold."""
        memory = self.recipe.memory
        if not memory.gradient_caching:
            return [layouts]
        if _world_size() > 1:
            return [[layout] for layout in layouts]
        return list(group_to_fit(layouts, memory.tokens))

    @cached_property
    def _pass_tokens(self) -> int:
        return pass_tokens(self.encoder.model, self.encoder.device, self.encoder.layers)

    # -- memory --------------------------------------------------------------------------------

    def _run_pass(self, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.recipe.memory.gradient_caching and torch.is_grad_enabled():
            output: Tensor = checkpoint(run, *inputs, use_reentrant=False)
            return output
        return run(*inputs)

    def tie_weights(self) -> None:
        """Tie shared weights again, after sharding has separated them."""
        self.encoder.model.tie_weights()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Any = None, **options: Any
    ) -> None:
        """Checkpoint every layer's activations, as transformers does."""
        kwargs = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        self.encoder.model.gradient_checkpointing_enable(
            {**kwargs, "context_fn": self.encoder.special.checkpoint_contexts}, **options
        )


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gather(local: Tensor) -> Tensor:
    """The rows of all processes, in order of process.

    Every process computes the whole batch's loss, with gradients for its own rows only. Their sum
    is the whole gradient, but data parallelism takes the mean: so gradients are scaled here.
    """
    if _world_size() == 1:
        return local
    gathered = [torch.empty_like(local) for _ in range(_world_size())]
    dist.all_gather(gathered, local.detach().contiguous())
    gathered[dist.get_rank()] = local + (_world_size() - 1) * (local - local.detach())
    return torch.cat(gathered)
