"""Seeded requests whose prompts are read in parts, on a CPU.

vLLM samples a token after each part of a prompt, drops it, and sets the request's generator back
by an offset, which generators on a CPU do not have: the engine dies (seen in vLLM 0.32).
"""

from __future__ import annotations

from typing import Any

import torch


class _Rewindable(torch.Generator):
    """A generator that is set back to its seed; what was drawn before has been dropped."""

    def get_offset(self) -> int:
        return 4  # what vLLM sets it back by

    def set_offset(self, offset: int) -> torch.Generator:
        return self.manual_seed(self.initial_seed())


class _Generators(dict[int, torch.Generator]):
    """By request; each becomes one that can be set back."""

    def __setitem__(self, request: int, generator: torch.Generator) -> None:
        if not isinstance(generator, _Rewindable):
            seeded = _Rewindable()
            seeded.manual_seed(generator.initial_seed())
            generator = seeded
        super().__setitem__(request, generator)


def make_rewindable(model_runner: Any) -> None:
    """Let a CPU's model runner set its requests' generators back."""
    if model_runner.device.type == "cpu":
        model_runner.input_batch.generators = _Generators()
