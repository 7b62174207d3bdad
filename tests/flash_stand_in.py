"""What stands in for FlashAttention on a CPU: two operators of the same meaning, one mask each.

`Launches` counts operations, an operator like these as one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gem_rag.core import varlen


def _scores(
    query: Tensor, key: Tensor, queries: Tensor, keys: Tensor, scale: float, causal: bool
) -> Tensor:
    """Scores of packed sequences, minus infinity between different ones: [heads, n, m]."""
    of_query = torch.bucketize(torch.arange(len(query)), queries[1:], right=True)
    of_key = torch.bucketize(torch.arange(len(key)), keys[1:], right=True)
    seen = of_query[:, None] == of_key
    if causal:
        seen &= torch.arange(len(query))[:, None] >= torch.arange(len(key))
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = torch.einsum("nhd,mhd->hnm", query.float(), key.float()) * scale
    return scores.masked_fill(~seen, -torch.inf)


@torch.library.custom_op("gem_tests::flash_forward", mutates_args=())
def _flash_forward(
    query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, max_queries: int,
    max_keys: int, scale: float, causal: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert max_queries == queries.diff().max()
    assert max_keys == keys.diff().max()
    scores = _scores(query, key, queries, keys, scale, causal)
    value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    output = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), value.float())
    return output.to(query.dtype), scores.logsumexp(-1)


@torch.library.custom_op("gem_tests::flash_backward", mutates_args=())
def _flash_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor,
    queries: Tensor, keys: Tensor, scale: float, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    weights = (_scores(query, key, queries, keys, scale, causal) - lse[..., None]).exp()
    share = query.shape[1] // key.shape[1]
    wide_key, wide_value = (x.float().repeat_interleave(share, dim=1) for x in (key, value))
    of_weights = torch.einsum("nhd,mhd->hnm", gradient.float(), wide_value)
    mean = (gradient.float() * output.float()).sum(-1).T
    of_scores = weights * (of_weights - mean[..., None]) * scale
    of_query = torch.einsum("hnm,mhd->nhd", of_scores, wide_key)
    of_key = torch.einsum("hnm,nhd->mhd", of_scores, query.float())
    of_value = torch.einsum("hnm,nhd->mhd", weights, gradient.float())
    of_key, of_value = (x.unflatten(1, (-1, share)).sum(2) for x in (of_key, of_value))
    return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype)


def use_packed_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run texts packed as on a GPU, with an operator of the same meaning for its kernel."""

    def backward(
        gradient: Tensor, qkv: Any, output: Tensor, lse: Tensor, bounds: Any, *more: Any, **kw: Any
    ) -> Any:
        where = bounds.queries, bounds.keys
        return _flash_backward(gradient, *qkv, output, lse, *where, *more, **kw)

    def forward(
        query: Tensor, key: Tensor, value: Tensor, bounds: Any, *more: Any, **kw: Any
    ) -> Any:
        return _flash_forward(query, key, value, *bounds, *more, **kw)

    monkeypatch.setattr(varlen, "is_supported", lambda *about: True)
    monkeypatch.setattr(varlen, "flash_forward", forward)
    monkeypatch.setattr(varlen, "flash_backward", backward)


class Launches(TorchDispatchMode):
    """Counts the operations that a device would run; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = func.is_view or "_unsafe_view" in str(func)
        self.count += not is_view
        return func(*args, **(kwargs or {}))
