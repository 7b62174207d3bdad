"""Texts of like length, and attention over them by the lowerings of `attention.py`.

vLLM packs a batch in one flat sequence; scaled dot-product attention wants rectangles. A group
is a rectangle with little padding, and knows how to get in and out of the flat sequence. Knows
nothing about vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gem_rag.core.arrays import IntArray
from gem_rag.core.attention import Lowered, gem_attention_forward, lower, lower_over_cached_text
from gem_rag.core.layout import Layout, Role, Row, TokenFacts, plan_batches

PADDING = 0.2  # at most this much of a rectangle


@dataclass(frozen=True)
class AttentionLayer:
    """What one layer asks of attention; stands where transformers passes its attention module."""

    name: str
    num_key_value_groups: int
    scaling: float
    sliding_window: int | None
    is_causal: bool = True
    training: bool = False

    def attend(self, query: Tensor, key: Tensor, value: Tensor, lowered: Lowered) -> Tensor:
        """[B, T, heads, width] each, and the query's rows come out the same."""
        output, _ = gem_attention_forward(
            self, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
            lowered.mask, lowered, scaling=self.scaling, sliding_window=self.sliding_window,
        )  # fmt: skip
        return output


class Positions:
    """Where the tokens of a flat sequence stand in a rectangle [B, T], row by row.

    chosen: bool [B, T].
    """

    def __init__(self, chosen: np.ndarray, device: torch.device) -> None:
        self._chosen, self._shape = chosen, chosen.shape
        self._full = bool(chosen.all())
        self._indices = torch.as_tensor(np.flatnonzero(chosen), device=device)

    def __len__(self) -> int:
        return len(self._indices)

    def take(self, facts: IntArray) -> Tensor:
        """Integers [B, T] -> [tokens]."""
        return torch.as_tensor(facts[self._chosen], device=self._indices.device)

    def spread(self, flat: Tensor) -> Tensor:
        """[tokens, heads, width] -> [B, T, heads, width]; where nothing stands is arbitrary."""
        if self._full:
            return flat.reshape(*self._shape, *flat.shape[1:])
        return self.put(flat, flat.new_empty(*self._shape, *flat.shape[1:]))

    def put(self, flat: Tensor, rectangle: Tensor) -> Tensor:
        """The rectangle [B, T, heads, width], with [tokens, heads, width] put in their places."""
        rectangle.flatten(0, 1).index_copy_(0, self._indices, flat)
        return rectangle

    def clear(self, rectangle: Tensor) -> None:
        """Zero in these places."""
        if len(self):
            rectangle.flatten(0, 1).index_fill_(0, self._indices, 0)

    def gather(self, rectangle: Tensor, out: Tensor) -> None:
        """[B, T, heads, width] -> `out`, [tokens, heads, width]."""
        torch.index_select(rectangle.flatten(0, 1), 0, self._indices, out=out)


class Group:
    """Rows that attend together, in two passes: their texts, then their special tokens.

    numbers: which rows of the batch these are.
    layout: the rows, "aligned".
    """

    def __init__(self, numbers: list[int], layout: Layout, device: torch.device) -> None:
        assert layout.rest_start is not None
        self.numbers, self.layout = numbers, layout
        role, self._width = layout.tokens.role, layout.rest_start
        is_text, is_special = role == Role.TEXT, role == Role.SPECIAL
        self.texts = Positions(is_text[:, : self._width], device)
        self.specials = Positions(is_special[:, self._width :], device)
        # Among all columns, where keys and values are kept.
        self._texts, self._specials = Positions(is_text, device), Positions(is_special, device)
        self._padding = Positions(role == Role.PAD, device)
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        self._device = device
        self._over_texts = lower_over_cached_text(layout, device)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        found: list[int] = (self.layout.tokens.role == Role.TEXT).sum(axis=1).tolist()
        return found

    @property
    def text_inputs(self) -> tuple[Tensor, Tensor]:
        """Token ids and positions of the texts: [tokens] each."""
        ids, position = self.layout.ids, self.layout.tokens.position
        return self._texts.take(ids), self._texts.take(position)

    @property
    def special_inputs(self) -> tuple[Tensor, Tensor]:
        """Slots and positions of the special tokens: [tokens] each."""
        ids, position = self.layout.ids, self.layout.tokens.position
        return self._specials.take(ids), self._specials.take(position)

    def keep_texts(self, layer: AttentionLayer, key: Tensor, value: Tensor) -> None:
        """Keep a layer's keys and values for the special tokens: [tokens, heads, width] each."""
        self._kept[layer.name] = self._keep(key), self._keep(value)

    def attend_texts(self, layer: AttentionLayer, query: Tensor, out: Tensor) -> None:
        """Attention of the texts over what was kept of them: [tokens, heads, width] each."""
        key, value = self._kept[layer.name]
        attended = layer.attend(
            self.texts.spread(query), key[:, : self._width], value[:, : self._width],
            self._among_texts,
        )  # fmt: skip
        self.texts.gather(attended, out)

    def attend_specials(self, layer: AttentionLayer, qkv: Sequence[Tensor], out: Tensor) -> None:
        """Attention of the special tokens over the kept texts: [tokens, heads, width] each."""
        query, *pair = qkv
        kept = self._kept.pop(layer.name)
        key, value = (self._specials.put(own, all) for own, all in zip(pair, kept, strict=True))
        attended = layer.attend(self.specials.spread(query), key, value, self._over_texts)
        self.specials.gather(attended, out)

    @cached_property
    def _among_texts(self) -> Lowered:
        texts = TokenFacts(*(field[:, : self._width] for field in self.layout.tokens))
        alone = Layout(self.layout.ids[:, : self._width], texts, self.layout.k, self._width)
        return lower(alone, "split", self._device)

    def _keep(self, flat: Tensor) -> Tensor:
        """A copy, since a compiled graph uses its buffers again, with room for special tokens."""
        kept = flat.new_empty(*self.layout.shape, *flat.shape[1:])
        self._padding.clear(kept)  # masked, but a NaN would show through a mask
        return self._texts.put(flat, kept)


def group_by_length(rows: Sequence[Row], k: int, budget: int, device: torch.device) -> list[Group]:
    """Rows in groups of like length and as many spans, of at most `budget` places each."""
    alike: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        alike.setdefault(len(row.spans), []).append(number)
    groups = []
    for numbers in alike.values():
        for batch in plan_batches([rows[i].length(k) for i in numbers], budget, PADDING):
            chosen = [numbers[i] for i in batch]
            groups.append(Group(chosen, Layout.build([rows[i] for i in chosen], k), device))
    return groups


def pack_into_steps(groups: Sequence[Group], budget: int, least: int = 1) -> Iterator[list[Group]]:
    """Neighbouring groups that together hold at most `budget` text tokens; a larger one alone.

    least: a text counts for as many tokens at least.
    """
    step: list[Group] = []
    held = 0
    for group in groups:
        size = sum(max(length, least) for length in group.lengths)
        if step and held + size > budget:
            yield step
            step, held = [], 0
        step.append(group)
        held += size
    if step:
        yield step
