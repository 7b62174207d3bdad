"""Contrastive GEM training on transformers' Trainer.

Knows nothing about where texts come from or what the trained model is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from gem_rag.encoder import GemEncoder
from gem_rag.layout import Layout, Row, plan_batches
from gem_rag.training.objectives import LogitScale, info_nce


class ContrastiveModel(nn.Module):
    """An encoder and its logit scale: rows of queries and documents in, loss out.

    budget: most tokens in one forward pass; a batch is embedded in parts of like length, so
        that little of it is padding, and compared whole.
    """

    _keys_to_ignore_on_save = None  # Trainer asks for it when a run resumes

    def __init__(self, encoder: GemEncoder, budget: int = 8192) -> None:
        super().__init__()
        self.encoder = encoder
        self.logit_scale = LogitScale()
        self.budget = budget

    def forward(self, queries: list[Row], documents: list[Row]) -> dict[str, Tensor]:
        vectors = self.embed([*queries, *documents])
        loss = info_nce(vectors[: len(queries)], vectors[len(queries) :], self.logit_scale())
        return {"loss": loss}

    def embed(self, rows: Sequence[Row]) -> Tensor:
        """Unit vectors of rows with one group of special tokens each, in order: [n, dim]."""
        k = self.encoder.k
        order: list[int] = []
        parts: list[Tensor] = []
        for batch in plan_batches([row.length(k) for row in rows], self.budget):
            order += batch
            parts.append(self.encoder.frozen_forward(Layout.build([rows[i] for i in batch], k)))
        inverse = torch.empty(len(order), dtype=torch.long)
        inverse[order] = torch.arange(len(order))
        return torch.cat(parts)[inverse]


class GemTrainer(Trainer):
    """Trainer that saves the special tokens' weights only: the base does not change."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trained = {n for n, p in self.model.named_parameters() if p.requires_grad}
        state = state_dict if state_dict is not None else self.model.state_dict()
        super()._save(output_dir, {n: t for n, t in state.items() if n in trained})
