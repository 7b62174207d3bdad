"""GEM in a model's own forward pass: one special token at the end of each text.

With one special token that sees a whole text (k = 1), the attention rule is causal attention over
the text and the token. So a model that cannot be told who attends to whom (recurrent layers carry
text past any mask, other kinds compute attention in their own way) follows the rule as it is. It
cannot have several special tokens, observers, or suffixes that read special tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gem_rag.core.layout import Layout, Role
from gem_rag.core.transfer import to_device
from gem_rag.errors import InputError

# Kinds of layers that are told who attends to whom, or that mix no tokens.
_MASKED = {"full_attention", "sliding_attention", "attention", "mlp", "moe", "dense", "sparse"}


def why_only_causal(model: Any) -> str | None:
    """Why a model cannot be told who attends to whom, as far as it shows without running it; None
    if it can."""
    config = model.config.get_text_config()
    if not model._can_set_attn_implementation():
        return "does not use transformers' attention interface"
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - _MASKED)
    if kinds:
        return f"has layers of kind {', '.join(kinds)}, which carry text past an attention mask"
    if getattr(config, "hidden_size_per_layer_input", None):
        return "feeds token ids into every layer, and special tokens have none"
    if getattr(config, "attn_logit_softcapping", None):
        return "caps the scores of its attention"
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        return "has attention sinks"
    return None


@dataclass(frozen=True)
class CausalRows:
    """Texts, each followed by its special token, padded on the right, where no causal layer looks.

    Attributes:
        ids: Token ids, int64 [B, T]; 0 for special tokens and padding, which is what layers see of
            them that read ids themselves.
        is_special: Where the special tokens are, bool [B, T].
        places: The column of each row's special token, int64 [B].
    """

    ids: Tensor
    is_special: Tensor
    places: Tensor

    @classmethod
    def of(cls, layout: Layout, reason: str, device: torch.device) -> CausalRows:
        """The rows of a batch.

        Args:
            layout: The batch.
            reason: What it is about the model that allows only these, for errors.
            device: Where the model runs.

        Raises:
            InputError: Rows have other special tokens than one that sees a whole text, or suffixes.
        """
        tokens = layout.tokens
        is_text, is_special = tokens.role == Role.TEXT, tokens.role == Role.SPECIAL
        lengths = is_text.sum(axis=1)
        sees_all = is_special & (tokens.start == 0) & (tokens.stop == lengths[:, None])
        others = is_special & ~sees_all | (tokens.role == Role.SUFFIX)
        if others.any() or (sees_all.sum(axis=1) != 1).any():
            raise InputError(
                f"this model {reason}, so it gives vectors of whole texts only: embed parts of a "
                "document as texts of their own, or choose a model whose layers all use softmax "
                "attention"
            )
        columns = np.arange(int(lengths.max()) + 1)
        ids = np.zeros((len(lengths), len(columns)), dtype=np.int64)
        ids[columns < lengths[:, None]] = layout.ids[is_text]
        at = columns == lengths[:, None]
        return cls(to_device(ids, device), to_device(at, device), to_device(lengths, device))
