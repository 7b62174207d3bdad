"""`GemRerank`: nodes in a better order, by the model that found them."""

from __future__ import annotations

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.embeddings.gem.shared import GemComponent

from gem_rag import InputError
from gem_rag.adapters import best_first


class GemRerank(GemComponent, BaseNodePostprocessor):
    """Reads each node together with the query, and fuses what it finds with the order that they
    came in. Scores stay as they were.

    Attributes:
        top_n: How many nodes to keep; None for all.
    """

    top_n: int | None = Field(default=None, ge=1, description="How many nodes to keep.")

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
