"""What GEM training may move.

So far `special`: the special tokens' input rows and the adapters on their rows; the base model
is frozen, and generates afterwards what it generated before, bit for bit.

Knows nothing about data, losses or the training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gem_rag.adapters import linear_targets
from gem_rag.config import AdapterConfig, Pooling
from gem_rag.encoder import GemEncoder, check_supported


def special(
    model: Any,
    k: int,
    pooling: Pooling = "mean",
    rank: int = 16,
    alpha: float | None = None,
    targets: Sequence[str] = (),
) -> GemEncoder:
    """An encoder of which only the special tokens' own weights train, in float32.

    rank, alpha: of the adapters; alpha defaults to twice the rank.
    targets: last names of the linear layers that get one ("q_proj", ...); default all below the
        head. Routers of mixture-of-experts models take flattened tokens and must be left out.
    """
    model.requires_grad_(False)
    adapter = AdapterConfig(rank, alpha or 2.0 * rank, linear_targets(model, targets))
    encoder = GemEncoder(model, k, pooling, adapter)
    check_supported(encoder)
    encoder.special.to(torch.float32)
    return encoder
