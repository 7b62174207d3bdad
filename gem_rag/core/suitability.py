"""Whether a language model can be GEM-trained, and how: found out by loading and running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gem_rag.core.adapter_targets import place_adapters
from gem_rag.core.config import AdapterConfig
from gem_rag.core.encoder import GemEncoder, check_supported
from gem_rag.errors import GemError


@dataclass(frozen=True)
class Suitability:
    """What a model can do under GEM's attention rule.

    Attributes:
        accepted: Whether it follows the rule.
        reason: Why not, and what to do; empty if it does.
        only_whole_texts: Why it can have one special token only, after a whole text, and no
            observers; empty if it can have any.
        longest_text: The most tokens of a text, with one special token.
        dim: Length of an embedding; `layers` likewise how many there are to read it after.
        adapters: How many linear layers get adapters by default.
        without_adapters: Which get none, and why; empty if all do.
    """

    accepted: bool
    reason: str = ""
    only_whole_texts: str = ""
    longest_text: int | None = None
    dim: int | None = None
    layers: int | None = None
    adapters: int = 0
    without_adapters: str = ""


def examine(folder: Path) -> Suitability:
    """Load a model in a folder, and run a few tokens through it.

    Args:
        folder: A whole model's folder.

    Returns:
        What it can do.
    """
    from gem_rag.core.auto_model import load_language_model

    try:
        model = load_language_model(folder, dtype="auto", use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        return Suitability(False, f"it is no causal language model for transformers: {reason}")
    try:
        placement = place_adapters(model)
        adapter = AdapterConfig(1, 1.0, placement.rows) if placement.rows else None
        encoder = GemEncoder(model, 1, adapter=adapter)
        check_supported(encoder)
    except GemError as error:
        return Suitability(False, str(error))
    return Suitability(
        True,
        only_whole_texts=encoder.only_causal or "",
        longest_text=encoder.max_text_tokens,
        dim=encoder.dim,
        layers=encoder.layers,
        adapters=len(placement.rows),
        without_adapters=placement.left_out(),
    )
