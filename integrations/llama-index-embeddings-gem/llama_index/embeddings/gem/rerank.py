"""`GemRerank`: nodes in a better order, by the model that found them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

import gem_rag
from gem_rag import EngineName, Gem, InputError
from gem_rag.adapters import best_first


class GemRerank(BaseNodePostprocessor):
    """Reads each node together with the query, and fuses what it finds with the order that they
    came in. Scores stay as they were.

    Args:
        model: A name that `gem_rag.load` accepts (bundled, a local folder, or a hub name), or a
            `Gem`, which its owner closes.
        **settings: The fields below.

    Attributes:
        model_name: The name of the model.
        engine: What runs a named model, as in `gem_rag.load`.
        model_kwargs: Further options of `gem_rag.load` for a named model.
        top_n: How many nodes to keep; None for all.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(
        default="gem-tiny", description="A bundled model, a local folder or a hub name."
    )
    engine: EngineName = Field(default="auto", description="The inference engine.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of gem_rag.load."
    )
    top_n: int | None = Field(default=None, ge=1, description="How many nodes to keep.")

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

    @classmethod
    def class_name(cls) -> str:
        """The identifier of the class in serialized settings."""
        return "GemRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("nodes are reranked for a query: give query_bundle or query_str")
        texts = [node.node.get_content(MetadataMode.NONE) for node in nodes]
        order = best_first(self.gem, query_bundle.query_str, texts)
        return [nodes[place] for place in order[: self.top_n]]
