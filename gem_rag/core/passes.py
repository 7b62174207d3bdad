"""A forward pass of a model's layers under an attention rule, plainly or compiled."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gem_rag.core.attention import GemAttention, model_kwargs
from gem_rag.core.halves import TextHalf
from gem_rag.errors import GemError


def run(
    model: nn.Module, attention: GemAttention, mask: Tensor | None = None, **inputs: Any
) -> Tensor:
    """One forward pass.

    Args:
        model: A model without its head.
        attention: How its layers attend.
        mask: What they are given for a mask.
        **inputs: Ids or embeddings, and positions.

    Returns:
        Outputs of the last layer after the final norm: [B, T, hidden].
    """
    output: Tensor = model(
        use_cache=False, **inputs, **model_kwargs(attention, mask)
    ).last_hidden_state
    return output


def run_text(model: nn.Module, text: TextHalf) -> Tensor:
    """The text half of a pass, which keeps its keys and values: as `run`."""
    return run(model, text, input_ids=text.ids, position_ids=text.position)


def compile_text_half(model: nn.Module) -> Callable[[TextHalf], Tensor]:
    """`run_text` of a model, compiled for texts of any shape by the first call.

    The model itself stays as it is, so that whatever else it does is not changed by a bit.

    Raises:
        GemError: The model is spread over devices by hooks, which a compiled copy would not have.
    """
    plain = _without_hooks(model)
    compiled: Callable[[TextHalf], Tensor] = torch.compile(
        lambda text: run_text(plain, text), dynamic=True
    )
    return compiled


def _without_hooks(module: nn.Module) -> nn.Module:
    """A module of the same weights whose layers have no hooks: those of adapters do nothing for
    texts, and would cut a compiled layer in pieces."""
    if hasattr(module, "_hf_hook"):
        raise GemError("a model that device_map spreads over devices cannot be compiled: load it "
                       "with compile=False, or on one device")  # fmt: skip
    plain = copy.copy(module)
    plain.__dict__ = dict(module.__dict__)
    plain._forward_hooks = OrderedDict()
    plain._modules = {
        name: None if child is None else _without_hooks(child)
        for name, child in module._modules.items()
    }
    return plain
