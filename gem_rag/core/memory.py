"""How many tokens fit into one pass."""

from __future__ import annotations

from typing import Any

import torch

from gem_rag.core.attention import head_dim

CPU_TOKENS = 4096
_LEAST, _MOST = 8192, 2**18
_SHARE = 0.5  # of free memory: generation and other processes want some too


def pass_tokens(model: Any, device: torch.device, layers: int | None = None) -> int:
    """Text tokens of one embedding pass, by the memory that is free now.

    Args:
        model: A causal language model on the device.
        device: Where it runs.
        layers: How many of its layers a pass goes through; None for all.

    Returns:
        A number of tokens; a pass that does not fit after all is halved by the engine.
    """
    if device.type != "cuda":
        return CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fitting = int(free * _SHARE / bytes_per_token(model, layers))
    return min(max(fitting, _LEAST), _MOST)


def bytes_per_token(model: Any, layers: int | None = None) -> int:
    """Memory that a text token takes in a pass: its keys and values in every layer, which are kept,
    and what one layer works with."""
    config = model.config.get_text_config()
    hidden = config.hidden_size
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    kept = 2 * (layers or config.num_hidden_layers) * key_heads * head_dim(config)
    return int((kept + 8 * hidden + 3 * inner) * model.dtype.itemsize)
