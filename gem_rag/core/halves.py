"""The attention rule in two halves: texts first, then all special tokens over what texts left.

No text token sees a special token, so texts run by themselves, plainly causal, and their keys and
values are kept. The special tokens of any number of such passes then run through the layers once,
each over the kept keys and values of its own text, and itself. The numbers are those of one pass
under the rule, which `attention.may_attend` states; training needs gradients of the second half
only, whose rows are few.

Texts run padded to a rectangle (`PaddedTexts`), or where FlashAttention runs packed one after
another (`packed_texts.PackedTexts`). Both engines and training use the same halves; vLLM runs texts
through its own layers and leaves their keys and values here (`TextHalf.keep`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gem_rag.core.arrays import BoolArray, IntArray
from gem_rag.core.attention import lower_over_cached_text
from gem_rag.core.layout import Layout, Role
from gem_rag.core.transfer import to_device

Heads = tuple[Tensor, Tensor, Tensor]  # query, key and value, [B, heads, T, head_dim] each


class TextHalf(ABC):
    """A pass over texts alone: causal attention that keeps its keys and values.

    Attributes:
        ids: Token ids, int64 [B, T]; `position` likewise.
        is_text: Which of those are a text's, and not padding: bool [B, T].
        lengths: Tokens of each text, int64 [texts].
        extent: Positions that the longest text and its special tokens span.
        slots: The index in its group of every special token that goes with these texts, int64 [S];
            `special_position` likewise.
        special: Which of those are special tokens, and not padding of rows that have fewer:
            bool [S].
        calls: How many attention layers have used it.
    """

    ids: Tensor
    position: Tensor
    is_text: BoolArray
    lengths: IntArray
    extent: int
    slots: IntArray
    special_position: IntArray
    special: IntArray

    def __init__(self) -> None:
        self.calls = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def attend(
        self, module: Any, qkv: Heads, mask: Any, scaling: float | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """As `attention.gem_attention_forward`."""
        query, key, value = qkv
        self.keep(key, value)
        return self.attend_causally(qkv, _scale(query, scaling)), None

    def keep(self, key: Tensor, value: Tensor) -> None:
        """Keep a layer's keys and values for the special tokens, [B, key heads, T, head_dim] each;
        layer after layer."""
        self._keys.append(key)
        self._values.append(value)

    @abstractmethod
    def attend_causally(self, qkv: Heads, scale: float) -> Tensor:
        """[B, T, heads, head_dim], causal within each text."""

    @abstractmethod
    def attend_specials(self, layer: int, qkv: Sequence[Tensor], scale: float) -> Tensor:
        """A layer's attention of the special tokens to their texts and themselves.

        Args:
            layer: Its number.
            qkv: Queries [1, heads, S, head_dim], keys and values [1, key heads, S, head_dim].
            scale: Of the scores.

        Returns:
            [1, S, heads, head_dim].
        """


class PaddedTexts(TextHalf):
    """The texts of one "aligned" layout, padded to the longest.

    Args:
        layout: The batch.
        device: Where the model runs.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        super().__init__()
        texts, rest = slice(0, special_columns(layout).start), special_columns(layout)
        self.ids = to_device(layout.ids[:, texts], device)
        self.position = to_device(layout.tokens.position[:, texts], device)
        self.is_text = layout.tokens.role[:, texts] == Role.TEXT
        self.lengths = self.is_text.sum(axis=1)
        self.extent = int(layout.tokens.position.max()) + 1
        self.slots = layout.ids[:, rest].ravel()
        self.special_position = layout.tokens.position[:, rest].ravel()
        self.special = (layout.tokens.role[:, rest] == Role.SPECIAL).ravel()
        self._seen = _seen(layout, device)

    def attend_causally(self, qkv: Heads, scale: float) -> Tensor:
        # Padding is on the right, where no token of a text sees it.
        output: Tensor = F.scaled_dot_product_attention(
            *qkv, is_causal=True, scale=scale, enable_gqa=qkv[0].shape[1] != qkv[1].shape[1]
        )
        return output.transpose(1, 2)

    def attend_specials(self, layer: int, qkv: Sequence[Tensor], scale: float) -> Tensor:
        return _attend_over_text(qkv, self._keys[layer], self._values[layer], self._seen, scale)


class SpecialHalf:
    """The special tokens of some text passes, one after another in a single sequence.

    Attributes:
        slots: Index of each in its group, int64 [S]; `position` likewise.
        places: Where the special tokens are among them, int64; the rest is padding.
        extent: As of `attention.GemAttention`; `calls` likewise.
    """

    def __init__(self, texts: Sequence[TextHalf], device: torch.device) -> None:
        self.slots = to_device(np.concatenate([text.slots for text in texts]), device)
        self.position = to_device(np.concatenate([t.special_position for t in texts]), device)
        self.places = to_device(np.flatnonzero(np.concatenate([t.special for t in texts])), device)
        self.extent = max(text.extent for text in texts)
        self.calls = 0
        self._texts = texts
        self._sizes = [len(text.slots) for text in texts]

    def attend(
        self, module: Any, qkv: Heads, mask: Any, scaling: float | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """[1, S, heads, head_dim] for the queries, [1, heads, S, head_dim]."""
        layer = self.calls - 1
        scale = _scale(qkv[0], scaling)
        with torch.autocast(qkv[0].device.type, enabled=False):
            if len(self._texts) == 1:
                return self._texts[0].attend_specials(layer, qkv, scale), None
            parts = zip(*(x.split(self._sizes, dim=2) for x in qkv), strict=True)
            outputs = [
                text.attend_specials(layer, part, scale)
                for text, part in zip(self._texts, parts, strict=True)
            ]
            return torch.cat(outputs, dim=1), None


def _scale(query: Tensor, scaling: float | None) -> float:
    """Of the scores: the model's own, or the usual one of [..., head_dim]."""
    return query.shape[-1] ** -0.5 if scaling is None else float(scaling)


def special_columns(layout: Layout) -> slice:
    """Columns of the special tokens, and of what pads them."""
    assert layout.rest_start is not None, "texts and special tokens are not in blocks of their own"
    return slice(layout.rest_start, layout.shape[1])


def _seen(layout: Layout, device: torch.device) -> Tensor:
    """0 where a special token sees a token of its text, else minus infinity:
    float32 [B, 1, 1, specials of a row, T]."""
    over_all = lower_over_cached_text(layout, device).mask
    mask = over_all[:, None, ..., : special_columns(layout).start]
    return torch.zeros(mask.shape, device=device).masked_fill(~mask, -torch.inf)


def _attend_over_text(
    qkv: Sequence[Tensor], keys: Tensor, values: Tensor, seen: Tensor, scale: float
) -> Tensor:
    """Attention of a text pass's special tokens, its softmax in float32.

    Args:
        qkv: Of the special tokens, text after text: queries [1, heads, B x n, head_dim], keys and
            values [1, key heads, B x n, head_dim].
        keys: Of the texts, [B, key heads, T, head_dim]; `values` likewise.
        seen: 0 where a special token sees a token of its text, else minus infinity:
            float32 [B, 1, 1, n, T].
        scale: Of the scores.

    Returns:
        [1, B x n, heads, head_dim] in the dtype of the keys.
    """
    if keys.requires_grad:
        query, key, value = qkv
        return _attention(query, key, value, keys, values, seen, scale)[0]
    output: Tensor = _OverFrozenText.apply(*qkv, keys, values, seen, scale)
    return output


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The output, and the weights of the text's tokens and of the special token itself:
    float32 [B, key heads, heads of one, n, T + 1]."""
    query, key, value = (_by_text(x, seen, keys.shape[1]) for x in (query, key, value))
    length = keys.shape[2]
    scores = (query.flatten(2, 3) * scale) @ keys.float().transpose(2, 3)
    scores = scores.view(*query.shape[:4], length) + seen
    itself = (query * key).sum(-1, keepdim=True) * scale
    weights = torch.cat([scores, itself], dim=-1).softmax(dim=-1)
    over_text = weights[..., :length].flatten(2, 3) @ values.float()
    output = over_text.view(*query.shape[:4], -1) + weights[..., length:] * value
    return output.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)[None].to(keys.dtype), weights


class _OverFrozenText(torch.autograd.Function):
    """`_attention` over texts that need no gradients.

    Its backward pass keeps the texts' keys and values as they are; autograd would keep a float32
    copy of them for every layer.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output, weights = _attention(*inputs)
        ctx.save_for_backward(*inputs[:6], weights)
        ctx.scale = inputs[6]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *qkv, keys, values, seen, weights = ctx.saved_tensors
        query, key, value = (_by_text(x, seen, keys.shape[1]) for x in qkv)
        gradient = _by_text(gradient.transpose(1, 2), seen, keys.shape[1])
        of_text, of_itself = weights.split([keys.shape[2], 1], dim=-1)
        # The softmax's gradient, for the text's tokens and for the special token itself.
        by_text = (gradient.flatten(2, 3) @ values.float().transpose(2, 3)).view_as(of_text)
        by_itself = (gradient * value).sum(-1, keepdim=True)
        mean = (of_text * by_text).sum(-1, keepdim=True) + of_itself * by_itself
        by_text = of_text * (by_text - mean) * ctx.scale
        by_itself = of_itself * (by_itself - mean) * ctx.scale
        of_query = (by_text.flatten(2, 3) @ keys.float()).view_as(query) + by_itself * key
        of_key = (by_itself * query).sum(2, keepdim=True)
        of_value = (of_itself * gradient).sum(2, keepdim=True)
        back = (
            of.permute(1, 2, 0, 3, 4).flatten(2, 3).flatten(0, 1)[None].to(x.dtype)
            for of, x in zip((of_query, of_key, of_value), qkv, strict=True)
        )
        return (*back, None, None, None, None)


def _by_text(x: Tensor, seen: Tensor, kv_heads: int) -> Tensor:
    """[1, heads, B x n, head_dim] as float32 [B, key heads, heads of one, n, head_dim]."""
    batch, specials = seen.shape[0], seen.shape[3]
    by_head = x.float().reshape(kv_heads, -1, batch, specials, x.shape[-1])
    return by_head.permute(2, 0, 1, 3, 4)
