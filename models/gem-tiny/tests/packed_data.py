"""Small random sequences of tokens."""

from __future__ import annotations

import numpy as np
from gem_tiny.packing import DataMixture, PackedSequences


def sequences(seed: int, count: int = 24, length: int = 16) -> PackedSequences:
    tokens = np.random.default_rng(seed).integers(0, 64, (count, length + 1)).astype(np.uint16)
    return PackedSequences(tokens, np.ones((count, length + 1), np.uint8))


def mixture(batch: int = 128) -> DataMixture:
    return DataMixture(
        sequences(0, 48, 8), sequences(1), 0, batch, row_share=0.25, decay_row_share=0.5
    )
