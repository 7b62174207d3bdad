"""Losses of GEM training.

Knows nothing about models, data or the training loop.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gem_rag.training.rows import IGNORED


class LogitScale(nn.Module):
    """Learnable factor on cosine similarities: exp(s), s from log 20, kept in [0, log 100].

    Paper section 4.
    """

    def __init__(self, initial: float = 20.0, largest: float = 100.0) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(math.log(initial)))
        self.limit = math.log(largest)

    def forward(self) -> Tensor:
        # Clamped in place and not in the graph, so that s cannot get stuck beyond the limit.
        with torch.no_grad():
            self.s.clamp_(0.0, self.limit)
        return self.s.exp()


def info_nce(queries: Tensor, documents: Tensor, scale: Tensor) -> Tensor:
    """Contrastive loss with the batch's other documents as negatives; a scalar.

    queries: unit vectors [n, dim].
    documents: unit vectors [m, dim], m >= n; document i is the positive of query i, any beyond
        n are negatives for all.
    scale: factor on cosine similarities.
    """
    logits = scale * queries @ documents.T
    return F.cross_entropy(logits, torch.arange(len(queries), device=logits.device))


def next_token_loss(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Language-modelling loss, a scalar, in nats per predicted token.

    hidden: last-layer outputs [B, T, hidden].
    head: the model's language-modelling head.
    targets: what each place predicts, [B, T]; -100 for nothing (see `rows.targets`).
    """
    predicts = targets != IGNORED
    # Only the places that predict go through the head: its output is the largest tensor there is.
    return F.cross_entropy(head(hidden[predicts]).float(), targets[predicts])
