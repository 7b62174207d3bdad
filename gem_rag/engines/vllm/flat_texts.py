"""Texts as vLLM's layers have them, in one flat sequence, and as `core/halves.py` does."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gem_rag.core.halves import TextHalf
from gem_rag.core.transfer import to_device


class FlatTexts:
    """Texts without padding, one after another, and the `TextHalf` that keeps them.

    Args:
        half: The texts.
        device: Where the model runs.

    Attributes:
        ids: Token ids, int64 [tokens]; `positions` likewise.
    """

    def __init__(self, half: TextHalf, device: torch.device) -> None:
        self.half = half
        self._shape = half.is_text.shape
        # Where the tokens are in a padded rectangle, [B x T].
        self._places: Tensor | None = None
        if not half.is_text.all():
            self._places = to_device(np.flatnonzero(half.is_text), device)
        self.ids, self.positions = self._flat(half.ids), self._flat(half.position)

    def __len__(self) -> int:
        return len(self.ids)

    def keep(self, key: Tensor, value: Tensor) -> None:
        """Keep a layer's keys and values for the special tokens: [tokens, key heads, width] each.

        They are copied, since a compiled graph uses its buffers again.
        """
        self.half.keep(self._spread(key), self._spread(value))

    def attend(self, qkv: tuple[Tensor, Tensor, Tensor], scale: float, out: Tensor) -> None:
        """Causal attention of each text to itself.

        Args:
            qkv: [tokens, heads, width] each; keys and values may have fewer heads.
            scale: Of the scores.
            out: Where to write: [tokens, heads, width].
        """
        query, key, value = (self._spread(x) for x in qkv)
        out.copy_(self._flat(self.half.attend_causally((query, key, value), scale)))

    def _flat(self, rectangle: Tensor) -> Tensor:
        """[B, T, ...] as [tokens, ...]."""
        flat = rectangle.flatten(0, 1)
        return flat if self._places is None else flat[self._places]

    def _spread(self, flat: Tensor) -> Tensor:
        """[tokens, heads, width] as a copy, [B, heads, T, width]."""
        if self._places is None:
            spread = flat.clone()
        else:  # zeros elsewhere: what a NaN there would do to the others, no mask prevents
            spread = flat.new_zeros(self._shape[0] * self._shape[1], *flat.shape[1:])
            spread[self._places] = flat
        return spread.view(*self._shape, *flat.shape[1:]).transpose(1, 2)
