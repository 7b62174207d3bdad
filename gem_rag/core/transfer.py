"""Arrays to the device that runs the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(array: Any, device: torch.device | str) -> Tensor:
    """Copy a numpy array to a device; the program goes on while a GPU receives it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
