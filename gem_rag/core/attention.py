"""The GEM attention rule (paper section 3), stated once, and its lowerings.

`may_attend` is the rule. Three lowerings turn it into attention that a transformers model runs:

- dense: the rule as a [B, 1, T, T] mask; the plain reference.
- split: text tokens attend by causal attention without a mask, and only the few other rows carry
  a small [B, 1, S, T] mask. Needs one text per row.
- flex: a FlexAttention block mask; for CUDA, and for packed sequences.

They reach the model through transformers' public attention interface under the name "gem", so
there is no code per architecture. Without a lowering, "gem" is plain SDPA: generation runs the
code it always ran.

Knows nothing about tokenizers, pooling or engines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gem_rag.core.layout import Layout, Role, Tokens
from gem_rag.errors import GemError

IMPLEMENTATION = "gem"
LoweringName = Literal["dense", "split", "flex"]


def may_attend(q: Tokens, kv: Tokens) -> Any:
    """Whether row q attends to kv; any array library, broadcast over the fields' shapes.

    Every row sees itself. Beyond that only earlier tokens of its own text: a text token sees
    text; a special token sees the text in its span and no special token; a suffix token sees
    special tokens and suffix, never the text.
    """
    earlier = (kv.column < q.column) & (kv.segment == q.segment)
    text = (q.role == Role.TEXT) & (kv.role == Role.TEXT)
    in_span = (q.start <= kv.position) & (kv.position < q.stop)
    special = (q.role == Role.SPECIAL) & (kv.role == Role.TEXT) & in_span
    suffix = (q.role == Role.SUFFIX) & ((kv.role == Role.SPECIAL) | (kv.role == Role.SUFFIX))
    return (kv.column == q.column) | (earlier & (text | special | suffix))


@dataclass
class Lowered:
    """A layout's attention, ready for a model's forward: `model(..., **lowered.model_kwargs())`.

    mask: [B, 1, T, T] bool (dense), [B, 1, S, T] bool (split) or a BlockMask (flex).
    extent: positions the longest row reaches over, to compare with a sliding window.
    split: the columns that the split lowering treats apart, else None.
    calls: attention layers that have used it, so that a caller can tell that all have.
    """

    mask: Tensor | BlockMask
    extent: int
    split: _Split | None = None
    calls: int = 0

    def model_kwargs(self) -> dict[str, Any]:
        # transformers hands a four-dimensional mask through untouched, whatever it holds.
        return {"attention_mask": self.mask, "gem": self}


@dataclass(frozen=True)
class _Split:
    """Columns of text rows and of all other rows: a boundary, or [B, n] indices where ragged.

    Indices that fill a row up point at column T, which does not exist and is dropped.
    """

    text: slice | Tensor
    rest: slice | Tensor

    @classmethod
    def of(cls, layout: Layout, device: torch.device | str) -> _Split:
        tokens, width = layout.tokens, layout.shape[1]
        is_text = tokens.role == Role.TEXT
        is_rest = (tokens.role == Role.SPECIAL) | (tokens.role == Role.SUFFIX)
        from_zero = bool((tokens.column == tokens.position)[is_text].all())
        return cls(
            slice(0, int(is_text.sum(1).max())) if from_zero else _indices(is_text, device),
            _indices(is_rest, device) if layout.rest_start is None
            else slice(layout.rest_start, width),
        )  # fmt: skip


def tokens_on(layout: Layout, device: torch.device | str) -> Tokens:
    """The layout's facts as torch tensors."""
    return Tokens(*torch.as_tensor(np.stack(layout.tokens), device=device))


def lower(layout: Layout, how: LoweringName, device: torch.device | str = "cpu") -> Lowered:
    """Lower the rule for one batch; the result serves every layer of one forward pass."""
    tokens = tokens_on(layout, device)
    extent = int(layout.tokens.position.max()) + 1
    if how == "flex":
        return Lowered(_block_mask(tokens, layout.shape, device), extent)
    if how == "dense":
        return Lowered(_mask(tokens, tokens), extent)
    if layout.packed:
        raise GemError("the split lowering needs one text per row: lower a packed layout to flex")
    split = _Split.of(layout, device)
    rest = Tokens(*(_take(field, split.rest, dim=1) for field in tokens))
    return Lowered(_mask(rest, tokens), extent, split)


def lower_over_cached_text(layout: Layout, device: torch.device | str = "cpu") -> Lowered:
    """The split lowering of an "aligned" layout's rest alone, for a pass over its special (and
    suffix) rows that is handed the keys and values of the text: a [B, 1, S, T] mask."""
    return replace(lower(layout, "split", device), split=None)


def _mask(q: Tokens, kv: Tokens) -> Tensor:
    """The rule as a bool mask [B, 1, rows of q, rows of kv]."""
    rows = Tokens(*(field[:, :, None] for field in q))
    columns = Tokens(*(field[:, None, :] for field in kv))
    mask: Tensor = may_attend(rows, columns)
    return mask[:, None]


def _block_mask(tokens: Tokens, shape: tuple[int, int], device: torch.device | str) -> BlockMask:
    facts = torch.stack(tokens)  # one captured tensor compiles where six do not

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        allowed: Tensor = may_attend(
            Tokens(*(facts[i, b, q] for i in range(len(tokens)))),
            Tokens(*(facts[i, b, kv] for i in range(len(tokens)))),
        )
        return allowed

    batch, length = shape
    return create_block_mask(mask_mod, batch, None, length, length, device=str(device))


def _indices(chosen: np.ndarray, device: torch.device | str) -> Tensor:
    """Columns chosen in each row, [B, n], filled up with T."""
    width = int(chosen.sum(1).max())
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :width]
    filled = np.where(np.take_along_axis(chosen, order, axis=1), order, chosen.shape[1])
    return torch.as_tensor(filled, device=device)


def _take(x: Tensor, where: slice | Tensor, dim: int) -> Tensor:
    """Columns of x, whose dimension 0 is the batch and dimension `dim` the sequence."""
    if isinstance(where, slice):
        return x.narrow(dim, where.start, where.stop - where.start)
    index = where.clamp(max=x.shape[dim] - 1)  # filler rows compute something, and are dropped
    shape = [1] * x.ndim
    shape[0], shape[dim] = index.shape
    size = list(x.shape)
    size[dim] = index.shape[1]
    return x.gather(dim, index.view(shape).expand(size))


def gem_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    gem: Lowered | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: query [B, H, T, D] -> output [B, T, H, D].

    Raises GemError where the model asks of attention what the GEM lowerings do not do.
    """
    if gem is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    _check_plain(module, gem.extent, kwargs)
    gem.calls += 1
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if gem.split is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _split_forward(module, (query, key, value), attention_mask, gem.split, **kwargs), None


def _split_forward(
    module: Any,
    qkv: tuple[Tensor, Tensor, Tensor],
    rest_mask: Tensor | None,
    split: _Split,
    **kwargs: Any,
) -> Tensor:
    query, key, value = qkv
    texts = (_take(x, split.text, dim=2) for x in qkv)
    text, _ = sdpa_attention_forward(module, *texts, None, is_causal=True, **kwargs)
    rest_query = _take(query, split.rest, dim=2)
    if not rest_query.shape[2] and isinstance(split.text, slice):
        return text
    rest, _ = sdpa_attention_forward(module, rest_query, key, value, rest_mask, **kwargs)
    if isinstance(split.text, slice) and isinstance(split.rest, slice):
        return torch.cat([text, rest], dim=1)
    batch, heads, length, width = query.shape
    out = text.new_zeros(batch, length + 1, heads, width)
    for rows, where in ((text, split.text), (rest, split.rest)):
        if isinstance(where, slice):
            out[:, where] = rows
        else:
            out.scatter_(1, where[:, :, None, None].expand_as(rows), rows)
    return out[:, :length]


def _check_plain(module: Any, extent: int, kwargs: dict[str, Any]) -> None:
    """Refuse what would make the rule silently wrong."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise GemError(
                f"{type(module).__name__} uses attention with {name}, which GEM attention does "
                "not do: choose a model with plain softmax attention"
            )
    window = kwargs.get("sliding_window")
    if window is not None and extent > window:
        raise GemError(
            f"{type(module).__name__} attends over a sliding window of {window} tokens and the "
            f"text reaches over {extent}: embed texts of at most {window} tokens, special tokens "
            "included"
        )


AttentionInterface.register(IMPLEMENTATION, gem_attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
