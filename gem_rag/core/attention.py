"""The GEM attention rule (paper section 3), stated once, and its lowerings.

`may_attend` is the rule. Three lowerings turn it into attention that a transformers model runs:

- dense: the rule as a [B, 1, T, T] mask; the plain reference.
- split: text tokens use causal attention without a mask, and only the few other tokens have a
  small [B, 1, S, T] mask. Needs one text per row.
- flex: a FlexAttention block mask; for CUDA, and for packed sequences.

They reach the model through transformers' public attention interface under the name "gem", so
there is no code per architecture. Without a lowering, "gem" is plain SDPA: generation runs the
code it always ran.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gem_rag.core.layout import Layout, Role, TokenFacts
from gem_rag.errors import GemError

IMPLEMENTATION = "gem"
LoweringName = Literal["dense", "split", "flex"]


def may_attend(q: TokenFacts, kv: TokenFacts) -> Any:
    """Whether token q attends to token kv (paper section 3).

    Every token attends to itself. Beyond that only to earlier tokens of its own text: a text token
    to text; a special token to the text in its span and to no special token; a suffix token to
    special tokens and the suffix, never to the text.

    Args:
        q: Facts about the queries, arrays of any library.
        kv: Facts about the keys; broadcast against those of `q`.

    Returns:
        A bool array of the broadcast shape.
    """
    earlier = (kv.column < q.column) & (kv.segment == q.segment)
    text = (q.role == Role.TEXT) & (kv.role == Role.TEXT)
    in_span = (q.start <= kv.position) & (kv.position < q.stop)
    special = (q.role == Role.SPECIAL) & (kv.role == Role.TEXT) & in_span
    suffix = (q.role == Role.SUFFIX) & ((kv.role == Role.SPECIAL) | (kv.role == Role.SUFFIX))
    return (kv.column == q.column) | (earlier & (text | special | suffix))


class GemAttention(Protocol):
    """What the attention layers of one forward pass do: `model(..., **model_kwargs(attention))`.

    Attributes:
        extent: Positions that the longest row spans, to compare with a sliding window.
        calls: How many attention layers have used it, so that a caller can check that all have.
    """

    calls: int

    @property
    def extent(self) -> int: ...

    def attend(
        self, module: Any, qkv: tuple[Tensor, Tensor, Tensor], mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As `gem_attention_forward`."""
        ...


def model_kwargs(attention: GemAttention, mask: Tensor | BlockMask | None = None) -> dict[str, Any]:
    """Keyword arguments of a model's forward, so that its layers attend like this."""
    # transformers passes a four-dimensional mask on untouched, whatever it holds.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool) if mask is None else mask
    return {"attention_mask": mask, "gem": attention}


@dataclass
class Lowered:
    """A layout's attention in one pass.

    Attributes:
        mask: [B, 1, T, T] bool (dense), [B, 1, S, T] bool (split) or a BlockMask (flex).
        extent: As of `GemAttention`; `calls` likewise.
        split: The columns that the split lowering treats separately, else None.
    """

    mask: Tensor | BlockMask
    extent: int
    split: _Split | None = None
    calls: int = 0

    def attend(
        self,
        module: Any,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | BlockMask | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As `gem_attention_forward`."""
        if isinstance(mask, BlockMask):
            return flex_attention_forward(module, *qkv, mask, **kwargs)
        if self.split is None:
            return sdpa_attention_forward(module, *qkv, mask, **kwargs)
        return _split_forward(module, qkv, mask, self.split, **kwargs), None


@dataclass(frozen=True)
class _Split:
    """Columns of text tokens and of all others: a slice, or [B, n] indices if ragged.

    Indices that pad a row point to column T, which does not exist and is dropped.
    """

    text: slice | Tensor
    rest: slice | Tensor

    @classmethod
    def of(cls, layout: Layout, device: torch.device | str) -> _Split:
        tokens, width = layout.tokens, layout.shape[1]
        is_text = tokens.role == Role.TEXT
        text: slice | Tensor
        rest: slice | Tensor
        if (tokens.column == tokens.position)[is_text].all():
            text = slice(0, int(is_text.sum(1).max()))
        else:
            text = _column_indices(is_text, device)
        if layout.rest_start is not None:
            rest = slice(layout.rest_start, width)
        else:
            is_rest = (tokens.role == Role.SPECIAL) | (tokens.role == Role.SUFFIX)
            rest = _column_indices(is_rest, device)
        return cls(text, rest)


def facts_as_tensors(layout: Layout, device: torch.device | str) -> TokenFacts:
    """The layout's facts as torch tensors on a device."""
    return TokenFacts(*torch.as_tensor(np.stack(layout.tokens), device=device))


def lower(layout: Layout, how: LoweringName, device: torch.device | str = "cpu") -> Lowered:
    """Lower the rule for one batch.

    Args:
        layout: The batch.
        how: Which lowering.
        device: Where the model runs.

    Returns:
        What every layer of one forward pass uses.

    Raises:
        GemError: The split lowering is asked of a packed layout.
    """
    tokens = facts_as_tensors(layout, device)
    extent = int(layout.tokens.position.max()) + 1
    if how == "flex":
        return Lowered(_block_mask(tokens, layout.shape, device), extent)
    if how == "dense":
        return Lowered(_mask(tokens, tokens), extent)
    if layout.packed:
        raise GemError("the split lowering needs one text per row: lower a packed layout to flex")
    split = _Split.of(layout, device)
    rest = TokenFacts(*(_take(field, split.rest, dim=1) for field in tokens))
    return Lowered(_mask(rest, tokens), extent, split)


def lower_over_cached_text(layout: Layout, device: torch.device | str = "cpu") -> Lowered:
    """Lower the rule for a pass over the special (and suffix) tokens of an "aligned" layout alone,
    with the keys and values of the texts from a cache: a [B, 1, S, T] mask."""
    return replace(lower(layout, "split", device), split=None)


def _mask(q: TokenFacts, kv: TokenFacts) -> Tensor:
    """The rule as a bool mask [B, 1, tokens of q, tokens of kv]."""
    queries = TokenFacts(*(field[:, :, None] for field in q))
    keys = TokenFacts(*(field[:, None, :] for field in kv))
    mask: Tensor = may_attend(queries, keys)
    return mask[:, None]


def _block_mask(
    tokens: TokenFacts, shape: tuple[int, int], device: torch.device | str
) -> BlockMask:
    facts = torch.stack(tokens)  # one captured tensor compiles where six do not

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        allowed: Tensor = may_attend(
            TokenFacts(*(facts[i, b, q] for i in range(len(tokens)))),
            TokenFacts(*(facts[i, b, kv] for i in range(len(tokens)))),
        )
        return allowed

    batch, length = shape
    return create_block_mask(mask_mod, batch, None, length, length, device=str(device))


def _column_indices(selected: np.ndarray, device: torch.device | str) -> Tensor:
    """Columns selected in each row, [B, n], padded with T."""
    width = int(selected.sum(1).max())
    order = np.argsort(~selected, axis=1, kind="stable")[:, :width]
    indices = np.where(np.take_along_axis(selected, order, axis=1), order, selected.shape[1])
    return torch.as_tensor(indices, device=device)


def _take(x: Tensor, where: slice | Tensor, dim: int) -> Tensor:
    """Columns of x, whose dimension 0 is the batch and whose dimension `dim` is the sequence."""
    if isinstance(where, slice):
        return x.narrow(dim, where.start, where.stop - where.start)
    index = where.clamp(max=x.shape[dim] - 1)  # padding computes something that is dropped
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
    gem: GemAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention in the form that transformers calls.

    Args:
        module: The attention layer.
        query: [B, heads, T, head_dim]; `key` and `value` likewise.
        attention_mask: The lowering's mask.
        gem: How to attend; None for plain attention.
        **kwargs: What else the model asks of attention.

    Returns:
        The output, [B, T, heads, head_dim], and None for the attention weights.

    Raises:
        GemError: The model needs attention that the lowerings do not compute.
    """
    if gem is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    _check_plain_softmax(module, gem.extent, kwargs)
    gem.calls += 1
    return gem.attend(module, (query, key, value), attention_mask, **kwargs)


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
    for attended, columns in ((text, split.text), (rest, split.rest)):
        if isinstance(columns, slice):
            out[:, columns] = attended
        else:
            out.scatter_(1, columns[:, :, None, None].expand_as(attended), attended)
    return out[:, :length]


def _check_plain_softmax(module: Any, extent: int, kwargs: dict[str, Any]) -> None:
    """Raise GemError for attention that would make the rule silently wrong."""
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
