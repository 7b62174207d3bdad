"""Generation before and after training: perplexity on held-out text, and how far logits moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class PerplexityComparison:
    """before, after: perplexity per token of the same text, by two models.

    tokens: how many were predicted.
    logits_difference: the greatest difference of any logit, 0.0 where all are equal.
    """

    before: float
    after: float
    tokens: int
    logits_difference: float


@torch.inference_mode()
def compare_perplexity(
    before: Any, after: Any, rows: Sequence[Sequence[int]]
) -> PerplexityComparison:
    """Run two causal language models over the same token rows, one row at a time."""
    totals, tokens, difference = [0.0, 0.0], 0, 0.0
    for row in rows:
        ids = torch.tensor([row], device=before.device)
        logits = [model(ids, use_cache=False).logits[0].float() for model in (before, after)]
        for i, found in enumerate(logits):
            totals[i] += float(F.cross_entropy(found[:-1], ids[0, 1:], reduction="sum"))
        tokens += len(row) - 1
        difference = max(difference, float((logits[0] - logits[1]).abs().max()))
    own, other = (math.exp(total / max(1, tokens)) for total in totals)
    return PerplexityComparison(own, other, tokens, difference)
