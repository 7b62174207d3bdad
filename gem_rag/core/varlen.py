"""FlashAttention over sequences of any lengths, one after another in one tensor: no padding, no
mask.

torch's public `varlen_attn` gives no gradient through the log-sum-exp that joins a special token's
attention to its text with that to itself, so the operators beneath it are called directly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Bounds(NamedTuple):
    """Where sequences start in packed queries and keys.

    Attributes:
        queries: int32 [sequences + 1], the last one the number of all queries; `keys` likewise.
        max_queries: Of one sequence; `max_keys` likewise.
    """

    queries: Tensor
    keys: Tensor
    max_queries: int
    max_keys: int


def is_supported(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel runs there."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= 256
    )


def flash_forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention of each sequence's queries to its keys.

    Args:
        query: [queries, heads, head_dim].
        key: [keys, key heads, head_dim]; `value` likewise.
        bounds: Where sequences start.
        scale: Of the scores.
        causal: Whether a query sees no key behind its own place.

    Returns:
        The output, [queries, heads, head_dim], and the log-sum-exp of the scores, float32
        [heads, queries].
    """
    output, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, *bounds, 0.0, causal, False, scale=scale
    )
    return output, lse


def flash_backward(
    gradient: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    output: Tensor,
    lse: Tensor,
    bounds: Bounds,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value.

    `output` and `lse` may be those of a softmax over more keys than these: the gradients are then
    these keys' share of it.
    """
    no_dropout = torch.empty(2, dtype=torch.uint64, device=gradient.device)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        gradient, *qkv, output, lse, *bounds, 0.0, causal, no_dropout, no_dropout[:0], scale=scale
    )
    return gradients


class CausalAttention(torch.autograd.Function):
    """Causal attention within each sequence: `apply(query, key, value, bounds, scale)`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scale: float
    ) -> Tensor:
        output, lse = flash_forward(query, key, value, bounds, scale, causal=True)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.bounds, ctx.scale = bounds, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *qkv, output, lse = ctx.saved_tensors
        of_qkv = flash_backward(
            gradient.contiguous(), tuple(qkv), output, lse, ctx.bounds, ctx.scale, causal=True
        )
        return (*of_qkv, None, None)


class TextAndItself(torch.autograd.Function):
    """A special token's attention to its text and to itself.

    `apply(query, key, value, text_key, text_value, bounds, scale)`: the first three are of the
    special tokens, [queries, heads, head_dim]; keys and values may have fewer heads. One softmax
    spans both: the text's part comes from the kernel with its log-sum-exp, and the token's own
    score is joined to it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        text_key: Tensor,
        text_value: Tensor,
        bounds: Bounds,
        scale: float,
    ) -> Tensor:
        over_text, lse = flash_forward(query, text_key, text_value, bounds, scale, causal=False)
        by_head, own_value = _by_key_head(query, key), value.float()[:, :, None]
        own_score = (by_head * key.float()[:, :, None]).sum(-1).flatten(1) * scale
        own_weight = (own_score - lse.T).sigmoid()
        output = torch.lerp(
            _by_key_head(over_text, key), own_value, own_weight.view(*by_head.shape[:3], 1)
        )
        output = output.flatten(1, 2).to(query.dtype)
        lse = torch.logaddexp(lse, own_score.T)
        ctx.save_for_backward(query, key, value, text_key, text_value, output, lse, own_weight)
        ctx.bounds, ctx.scale = bounds, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, text_key, text_value, output, lse, own_weight = ctx.saved_tensors
        of_query, of_text_key, of_text_value = flash_backward(
            gradient.contiguous(), (query, text_key, text_value), output, lse.contiguous(),
            ctx.bounds, ctx.scale, causal=False,
        )  # fmt: skip
        by_head, by_gradient = _by_key_head(query, key), _by_key_head(gradient, key)
        weight = own_weight.view(*by_head.shape[:3], 1)
        to_value = value.float()[:, :, None] - _by_key_head(output, key)
        of_score = weight * (by_gradient * to_value).sum(-1, keepdim=True) * ctx.scale
        own = (of_score * key.float()[:, :, None]).flatten(1, 2)
        return (
            (of_query + own).to(query.dtype),
            (of_score * by_head).sum(2).to(key.dtype),
            (weight * by_gradient).sum(2).to(value.dtype),
            of_text_key if ctx.needs_input_grad[3] else None,
            of_text_value if ctx.needs_input_grad[4] else None,
            None,
            None,
        )


def _by_key_head(x: Tensor, key: Tensor) -> Tensor:
    """[n, heads, head_dim] as float32 [n, key heads, heads of one, head_dim]."""
    return x.float().unflatten(1, (key.shape[1], -1))
