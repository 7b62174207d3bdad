"""Loading a language model by its folder, also where the model reads images too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)


def has_language_model(config_class: type) -> bool:
    """Whether transformers has language models of a configuration's class."""
    return (
        config_class in MODEL_FOR_CAUSAL_LM_MAPPING
        or config_class in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    )


def _auto_class(config: Any) -> Any:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and has_language_model(type(config)):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM  # whose error says which models there are


def without_weights(config: Any) -> Any:
    """The model of a configuration, none of whose weights are in memory."""
    with torch.device("meta"):
        return _auto_class(config).from_config(config)


def load_language_model(folder: str | Path, **settings: Any) -> Any:
    """Load a model, and its image encoder if it has one; a folder's own code is never run.

    Args:
        folder: The model's folder.
        **settings: Passed on to transformers' `from_pretrained`.

    Returns:
        The model.

    Raises:
        OSError: The folder holds none; ValueError and others of transformers' likewise.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return _auto_class(config).from_pretrained(folder, trust_remote_code=False, **settings)
