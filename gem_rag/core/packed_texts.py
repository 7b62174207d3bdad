"""`PackedTexts`: the text half of a pass without padding, by FlashAttention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gem_rag.core.arrays import IntArray
from gem_rag.core.halves import Heads, TextHalf
from gem_rag.core.layout import Layout, Role
from gem_rag.core.transfer import to_device
from gem_rag.core.varlen import Bounds, CausalAttention, TextAndItself


class PackedTexts(TextHalf):
    """The texts of "aligned" layouts, one after another in a single sequence.

    Args:
        layouts: The batches; they need not be of like length.
        device: Where the model runs.
        dtype: What attention computes in.
    """

    def __init__(self, layouts: Sequence[Layout], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype, k = dtype, layouts[0].k
        ids, position = _tokens(layouts, Role.TEXT, "position")
        self.ids, self.position = to_device(ids[None], device), to_device(position[None], device)
        self.slots, self.special_position, start, stop = _tokens(
            layouts, Role.SPECIAL, "position", "start", "stop"
        )
        self.special = np.ones(len(self.slots), dtype=bool)
        self.extent = 1 + int(max(position.max(), self.special_position.max(initial=0)))
        self.is_text = np.ones(ids[None].shape, dtype=bool)
        self.lengths = lengths = _per_row(layouts, Role.TEXT)
        text_starts = _starts(lengths)
        self._texts = _bounds(lengths, lengths, device)
        # One group of k special tokens is one sequence of queries, over its span of its text.
        groups = _per_row(layouts, Role.SPECIAL) // k
        start, spans = start[::k], stop[::k] - start[::k]
        self._groups = _bounds(np.full(len(spans), k), spans, device)
        self._spans: Tensor | None = None
        if not (np.array_equal(spans, lengths) and (groups == 1).all()):
            first = np.repeat(text_starts[:-1], groups) + start
            indices = np.repeat(first - _starts(spans)[:-1], spans) + np.arange(spans.sum())
            self._spans = to_device(indices, device)

    def attend_causally(self, qkv: Heads, scale: float) -> Tensor:
        return CausalAttention.apply(*map(self._packed, qkv), self._texts, scale)[None]

    def attend_specials(self, layer: int, qkv: Sequence[Tensor], scale: float) -> Tensor:
        texts = self._packed(self._keys[layer]), self._packed(self._values[layer])
        if self._spans is not None:
            texts = texts[0][self._spans], texts[1][self._spans]
        return TextAndItself.apply(*map(self._packed, qkv), *texts, self._groups, scale)[None]

    def _packed(self, x: Tensor) -> Tensor:
        """[1, heads, T, head_dim] as the kernel has it: [T, heads, head_dim]."""
        return x[0].transpose(0, 1).to(self._dtype)


def _tokens(layouts: Sequence[Layout], role: int, *facts: str) -> list[IntArray]:
    """Ids and facts of the tokens of a role, row after row: [n] each."""
    chosen = [layout.tokens.role == role for layout in layouts]
    wanted = [[layout.ids for layout in layouts]]
    wanted += [[getattr(layout.tokens, fact) for layout in layouts] for fact in facts]
    return [
        np.concatenate([fact[where] for fact, where in zip(of_all, chosen, strict=True)])
        for of_all in wanted
    ]


def _per_row(layouts: Sequence[Layout], role: int) -> IntArray:
    """How many tokens of a role each row has: [rows]."""
    return np.concatenate([(layout.tokens.role == role).sum(axis=1) for layout in layouts])


def _starts(lengths: IntArray) -> IntArray:
    """Where each of some consecutive sequences starts, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)])


def _bounds(queries: IntArray, keys: IntArray, device: torch.device) -> Bounds:
    return Bounds(
        to_device(_starts(queries).astype(np.int32), device),
        to_device(_starts(keys).astype(np.int32), device),
        int(queries.max(initial=0)),
        int(keys.max(initial=0)),
    )
