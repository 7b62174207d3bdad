"""Outputs of special tokens to embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gem_rag.core.config import Pooling


def pool(outputs: Tensor, pooling: Pooling) -> Tensor:
    """Pool the outputs of each group of special tokens (paper section 3).

    Args:
        outputs: Last-layer outputs, [groups, k, hidden].
        pooling: "mean" or "concat".

    Returns:
        Unit vectors, float32 [groups, dim]; dim is hidden for "mean", k x hidden for "concat".
    """
    vectors = outputs.float()
    vectors = vectors.mean(dim=1) if pooling == "mean" else vectors.flatten(1)
    return F.normalize(vectors, dim=-1)
