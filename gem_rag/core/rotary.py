"""Rotary embeddings that depend on nothing but a row's own positions.

LongRoPE and dynamic NTK scaling choose their frequencies by the longest position of a batch, and
keep them in the module. A row then depends on the rows beside it, and two threads that run the same
model disturb each other. Here every row gets what it would get alone.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

CosSin = tuple[Tensor, Tensor]


def make_rotary_rowwise(model: nn.Module, limit: int) -> None:
    """Let a model's rotary embeddings treat each row of a batch as if it were alone.

    Only modules whose output for a row depends on another row, or on an earlier call, are changed;
    for a model that has none this does nothing.

    Args:
        model: A transformers model.
        limit: Positions below this never change the frequencies, so that such rows go together.
    """
    for module, kinds in list(_rotary_modules(model)):
        if isinstance(module.forward, RowwiseRotary):
            continue
        if any(_depends_on_others(module, limit, **kind) for kind in kinds):
            module.forward = RowwiseRotary(module.forward, limit)


class RowwiseRotary:
    """A rotary module's forward, row by row.

    Args:
        forward: (x, position_ids [B, T], ...) -> cosines and sines, [B, T, head_dim].
        limit: As of `make_rotary_rowwise`.
    """

    def __init__(self, forward: Callable[..., CosSin], limit: int) -> None:
        self._forward = forward
        self._limit = limit
        self._lock = threading.Lock()

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> CosSin:
        longest = position_ids.amax(dim=-1).tolist()
        short = [row for row, position in enumerate(longest) if position < self._limit]
        groups = [short] if short else []
        groups += [[row] for row, position in enumerate(longest) if position >= self._limit]
        start = position_ids.new_zeros(1, 1)
        parts = []
        with self._lock:
            for rows in groups:
                self._forward(x, start, *args, **kwargs)  # forget the calls before
                parts.append(self._forward(x, position_ids[rows], *args, **kwargs))
        order = torch.tensor([row for rows in groups for row in rows]).argsort()
        cos, sin = (torch.cat(part)[order.to(part[0].device)] for part in zip(*parts, strict=True))
        return cos, sin

    def __deepcopy__(self, memo: dict[int, Any]) -> RowwiseRotary:
        return RowwiseRotary(copy.deepcopy(self._forward, memo), self._limit)


def _rotary_modules(model: nn.Module) -> Iterator[tuple[nn.Module, list[dict[str, str]]]]:
    """Rotary modules, and their arguments that name a kind of layer, where there are kinds."""
    for module in model.modules():
        names = [name for name, _ in module.named_buffers(recurse=False)]
        kinds = [name.removesuffix("inv_freq").rstrip("_") for name in names if "inv_freq" in name]
        if kinds:
            kinds = [kind for kind in kinds if not kind.endswith("original")]
            yield module, [{"layer_type": kind} if kind else {} for kind in kinds]


@torch.no_grad()
def _depends_on_others(module: nn.Module, limit: int, **kind: str) -> bool:
    """Whether a row's output is another beside a row of large positions, or after one."""
    buffer = next(module.buffers(recurse=False))
    x = torch.zeros(2, 1, 1, device=buffer.device)
    near, far = (torch.tensor([[at]], device=buffer.device) for at in (1, 8 * limit))
    try:
        alone = module(x, near, **kind)
        together = module(x, torch.cat([near, far]), **kind)
        after = module(x, near, **kind)
        module(x, near * 0, **kind)
    except (TypeError, IndexError, RuntimeError):  # it takes other positions, as those of images
        return False
    return any(
        not torch.equal(first, other[:1])
        for others in (together, after)
        for first, other in zip(alone, others, strict=True)
    )
