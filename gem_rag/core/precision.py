"""Which precisions a device computes in at full speed."""

from __future__ import annotations

import torch


def has_bfloat16(device: str = "auto") -> bool:
    """Whether a device has instructions for bfloat16.

    A CPU without them computes it one number at a time: sixty times slower than float32.

    Args:
        device: "cpu", "cuda", ...; "auto" for a GPU where there is one.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    if device == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True
