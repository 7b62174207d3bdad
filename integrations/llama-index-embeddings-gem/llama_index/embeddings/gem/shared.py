"""The base of `GemEmbedding` and `GemRerank`: which model they use, loaded on first use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.schema import BaseComponent

import gem_rag
from gem_rag import EngineName, Gem


class GemComponent(BaseComponent):
    """A component that uses a model.

    Args:
        model: A name that `gem_rag.load` accepts (bundled, a local folder, or a hub name), or a
            `Gem`, which its owner closes.
        **settings: The fields.

    Attributes:
        model_name: The name of the model.
        engine: What runs a named model, as in `gem_rag.load`.
        model_kwargs: Further options of `gem_rag.load` for a named model.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(
        default="gem-tiny", description="A bundled model, a local folder or a hub name."
    )
    engine: EngineName = Field(default="auto", description="The inference engine.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of gem_rag.load."
    )

    _gem: Gem | None = PrivateAttr(default=None)

    def __init__(self, model: str | Path | Gem = "gem-tiny", **settings: Any) -> None:
        model = settings.pop("model_name", model)  # its name in `to_dict`
        name = model.name if isinstance(model, Gem) else os.fspath(model)
        super().__init__(**{"model_name": name, **settings})
        self._gem = model if isinstance(model, Gem) else None

    @property
    def gem(self) -> Gem:
        """The shared model, loaded on first access."""
        if self._gem is None:
            self._gem = gem_rag.load(self.model_name, self.engine, **self.model_kwargs)
        return self._gem

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex pickles every private attribute to see which can be; keep weights out of it.
        without_weights = self.model_copy()
        without_weights._gem = None
        return super(GemComponent, without_weights).__getstate__()
