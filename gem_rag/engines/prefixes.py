"""Keys and values of prompts' first tokens: computed, and put into a cache that generation goes on
from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Layers = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that a model has read.

    Attributes:
        ids: The tokens.
        layers: Keys and values of each layer: [1, key heads, tokens, head_dim] each.
    """

    ids: tuple[int, ...]
    layers: Layers

    @cached_property
    def num_bytes(self) -> int:
        """What its keys and values take."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    def to(self, device: Any) -> Prefix:
        """The same on another device."""
        return Prefix(self.ids, tuple((k.to(device), v.to(device)) for k, v in self.layers))


def prefix_of_row(cache: Any, row: int, start: int, ids: Sequence[int]) -> Prefix:
    """What a cache holds of some tokens of a row.

    Args:
        cache: A `DynamicCache`.
        row: The row.
        start: The column of the first token.
        ids: The tokens.

    Returns:
        The prefix; of a cache of one row it shares the memory, which generation leaves as it is.
    """
    columns = slice(start, start + len(ids))
    alone = cache.layers[0].keys.shape[0] == 1

    def own(part: Tensor) -> Tensor:
        cut = part[row : row + 1, :, columns]
        return cut if alone else cut.clone()

    layers = tuple((own(layer.keys), own(layer.values)) for layer in cache.layers)
    return Prefix(tuple(ids), layers)


def filled_cache(known: Sequence[tuple[Prefix | None, int]], columns: int) -> DynamicCache:
    """A cache that holds the first tokens of several texts, which end in the same column.

    Args:
        known: For each text what has been read of it, and how many tokens of that it begins with.
        columns: Of the cache; what comes before a text in its row is padding.

    Returns:
        A cache of a row for each text.
    """
    cache = DynamicCache()
    if not columns:
        return cache
    some = next(prefix for prefix, _ in known if prefix is not None)
    for number, parts in enumerate(some.layers):
        keys, values = (
            torch.cat([_columns(prefix, count, number, side, part, columns)
                       for prefix, count in known])
            if len(known) > 1
            else _columns(*known[0], number, side, part, columns)
            for side, part in enumerate(parts)
        )  # fmt: skip
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _columns(
    prefix: Prefix | None, count: int, layer: int, side: int, like: Tensor, columns: int
) -> Tensor:
    """The last columns of a row of a layer's keys or values: [1, key heads, columns, head_dim]."""
    if prefix is None or not count:
        return like.new_zeros(*like.shape[:2], columns, like.shape[3])
    part = prefix.layers[layer][side][:, :, :count]
    return part if count == columns else F.pad(part, (0, 0, columns - count, 0))
