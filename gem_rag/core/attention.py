"""The GEM attention rule (paper section 3), stated once, and its lowerings.

`may_attend` is the rule. Lowerings turn it into attention that a transformers model runs:

- dense: the rule as a [B, 1, T, T] mask; the plain reference, and what suffixes train with.
- split: text tokens use causal attention without a mask, and only the few other tokens have a
  small [B, 1, S, T] mask. Needs texts and special tokens in blocks of their own.
- in two passes, the texts' and the special tokens': `halves.py`.

They reach the model through transformers' public attention interface under the name "gem", so
there is no code per architecture. Without a lowering, "gem" is plain SDPA: generation runs the
code it always ran.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gem_rag.core.layout import Layout, Role, TokenFacts
from gem_rag.core.transfer import to_device
from gem_rag.errors import GemError

IMPLEMENTATION = "gem"
LoweringName = Literal["dense", "split"]


def may_attend(q: TokenFacts, kv: TokenFacts) -> Any:
    """Whether token q attends to token kv (paper section 3).

    Every token attends to itself. Beyond that only to earlier tokens of its own row: a text token
    to text; a special token to the text in its span and to no special token; a suffix token to
    special tokens and the suffix, never to the text.

    Args:
        q: Facts about the queries, arrays of any library.
        kv: Facts about the keys; broadcast against those of `q`.

    Returns:
        A bool array of the broadcast shape.
    """
    earlier = kv.column < q.column
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


def model_kwargs(attention: GemAttention, mask: Tensor | None = None) -> dict[str, Any]:
    """Keyword arguments of a model's forward, so that its layers attend like this."""
    # transformers passes a four-dimensional mask on untouched, whatever it holds.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool) if mask is None else mask
    return {"attention_mask": mask, "gem": attention}


def head_dim(config: Any) -> int:
    """Length of a query of one attention head, by a language model's configuration."""
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


@dataclass
class Lowered:
    """A batch on its device, and its attention in one pass.

    Attributes:
        ids: As of the layout: int64 [B, T]. `tokens` likewise.
        mask: bool [B, 1, T, T] (dense), or [B, 1, S, T] over the last S columns (split).
        extent: As of `GemAttention`; `calls` likewise.
        rest_start: Where those columns start in the split lowering, else None.
    """

    ids: Tensor
    tokens: TokenFacts
    mask: Tensor
    extent: int
    rest_start: int | None = None
    calls: int = 0

    def attend(
        self,
        module: Any,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As `gem_attention_forward`."""
        if self.rest_start is None:
            return sdpa_attention_forward(module, *qkv, mask, **kwargs)
        return _split_forward(module, qkv, mask, self.rest_start, **kwargs), None


def lower(layout: Layout, how: LoweringName, device: torch.device | str = "cpu") -> Lowered:
    """Lower the rule for one batch.

    Args:
        layout: The batch.
        how: Which lowering.
        device: Where the model runs.

    Returns:
        What every layer of one forward pass uses.

    Raises:
        GemError: The split lowering is asked of rows that are padded whole.
    """
    if how == "split" and layout.rest_start is None:
        raise GemError(
            "the split lowering needs special tokens in columns of their own: arrange rows "
            "'aligned', or lower them to dense"
        )
    extent = int(layout.tokens.position.max()) + 1
    rest_start = layout.rest_start if how == "split" else None
    return lower_on_device(to_device(layout.stacked, device), extent, rest_start)


def lower_on_device(stacked: Tensor, extent: int, rest_start: int | None) -> Lowered:
    """As `lower`, of `Layout.stacked` where the model runs.

    Args:
        stacked: int64 [6, B, T].
        extent: As of `GemAttention`.
        rest_start: As of `Lowered`.
    """
    ids, tokens = stacked[0], TokenFacts(*stacked[1:])
    rest = TokenFacts(*(fact[:, rest_start:] for fact in tokens))
    return Lowered(ids, tokens, _mask(rest, tokens), extent, rest_start)


def lower_over_cached_text(layout: Layout, device: torch.device | str = "cpu") -> Lowered:
    """Lower the rule for a pass over the special (and suffix) tokens of an "aligned" layout alone,
    with the keys and values of the texts from a cache: a [B, 1, S, T] mask."""
    return replace(lower(layout, "split", device), rest_start=None)


def _mask(q: TokenFacts, kv: TokenFacts) -> Tensor:
    """The rule as a bool mask [B, 1, tokens of q, tokens of kv]."""
    queries = TokenFacts(*(field[:, :, None] for field in q))
    keys = TokenFacts(*(field[:, None, :] for field in kv))
    mask: Tensor = may_attend(queries, keys)
    return mask[:, None]


def gem_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
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
    return _attend(gem, module, (query, key, value), attention_mask, **kwargs)


# It keeps what passes: a compiled model is in pieces around it.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend(
    gem: GemAttention, module: Any, qkv: tuple[Tensor, Tensor, Tensor], mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    _check_plain_softmax(module, gem.extent, kwargs)
    gem.calls += 1
    return gem.attend(module, qkv, mask, **kwargs)


def _split_forward(
    module: Any,
    qkv: tuple[Tensor, Tensor, Tensor],
    rest_mask: Tensor | None,
    rest_start: int,
    **kwargs: Any,
) -> Tensor:
    query, key, value = qkv
    texts = (x[:, :, :rest_start] for x in qkv)
    text, _ = sdpa_attention_forward(module, *texts, None, is_causal=True, **kwargs)
    if rest_start == query.shape[2]:
        return text
    rest, _ = sdpa_attention_forward(
        module, query[:, :, rest_start:], key, value, rest_mask, **kwargs
    )
    return torch.cat([text, rest], dim=1)


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
