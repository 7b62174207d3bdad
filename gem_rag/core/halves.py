"""The attention rule in two halves: texts first, then all special tokens over what texts left.

No text token sees a special token, so texts run by themselves, plainly causal, and their keys and
values are kept. The special tokens of any number of such passes then run through the layers once,
each over the kept keys and values of its own text, and itself. The numbers are those of one pass
under the rule, which `attention.may_attend` states; training needs gradients of the second half
only, whose rows are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gem_rag.core.attention import lower_over_cached_text
from gem_rag.core.layout import Layout


@dataclass
class TextHalf:
    """The texts of an "aligned" layout: causal attention that keeps its keys and values.

    Attributes:
        layout: The batch.
        keys: By layer, [B, key heads, T, head_dim]; `values` likewise.
        calls: How many attention layers have used it.
    """

    layout: Layout
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    calls: int = 0

    @cached_property
    def extent(self) -> int:
        """Positions that the longest text and its special tokens span."""
        return int(self.layout.tokens.position.max()) + 1

    def attend(
        self, module: Any, qkv: tuple[Tensor, Tensor, Tensor], mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Padding is on the right, so plain causal attention is right for every text token."""
        _, key, value = qkv
        self.keys.append(key)
        self.values.append(value)
        return sdpa_attention_forward(module, *qkv, None, is_causal=True, **kwargs)[0], None


@dataclass
class SpecialHalf:
    """The special tokens of some text passes, one after another in a single sequence.

    Attributes:
        texts: The text passes.
        device: Where the model runs.
        calls: How many attention layers have used it.
    """

    texts: list[TextHalf]
    device: torch.device
    calls: int = 0

    def __post_init__(self) -> None:
        self.extent = max(text.extent for text in self.texts)
        self._seen = [_seen(text.layout, self.device) for text in self.texts]
        self._sizes = [seen.shape[0] * seen.shape[3] for seen in self._seen]

    def attend(
        self, module: Any, qkv: tuple[Tensor, Tensor, Tensor], mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """[1, S, heads, head_dim] for the queries, [1, heads, S, head_dim]."""
        layer = self.calls - 1
        scale = kwargs.get("scaling")
        scale = qkv[0].shape[-1] ** -0.5 if scale is None else float(scale)
        parts = zip(*(x.split(self._sizes, dim=2) for x in qkv), strict=True)
        with torch.autocast(self.device.type, enabled=False):
            outputs = [
                _attend_over_text(part, text.keys[layer], text.values[layer], seen, scale)
                for part, text, seen in zip(parts, self.texts, self._seen, strict=True)
            ]
        return torch.cat(outputs, dim=1), None


def special_columns(layout: Layout) -> slice:
    """Columns of the special tokens, and of what pads them."""
    assert layout.rest_start is not None, "texts and special tokens are not in blocks of their own"
    return slice(layout.rest_start, layout.shape[1])


def _seen(layout: Layout, device: torch.device) -> Tensor:
    """0 where a special token sees a token of its text, else minus infinity:
    float32 [B, 1, 1, specials of a row, T]."""
    over_all = lower_over_cached_text(layout, device).mask
    assert isinstance(over_all, Tensor)
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
    output = over_text.view_as(query) + weights[..., length:] * value
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
