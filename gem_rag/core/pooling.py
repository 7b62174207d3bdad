"""Output rows of special tokens to embeddings.

Knows nothing about how the rows were computed.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gem_rag.core.config import Pooling


def pool(rows: Tensor, pooling: Pooling) -> Tensor:
    """Unit vectors from special rows: [groups, k, hidden] -> [groups, dim], float32.

    dim is hidden for "mean" and k x hidden for "concat" (paper section 3).
    """
    vectors = rows.float().mean(dim=1) if pooling == "mean" else rows.float().flatten(1)
    return F.normalize(vectors, dim=-1)
