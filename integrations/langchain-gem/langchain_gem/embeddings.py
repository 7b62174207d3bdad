"""`GemEmbeddings`: embeddings of queries and documents."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings
from pydantic import Field

from gem_rag.aio import run_in_thread
from langchain_gem._shared import GemModel


class GemEmbeddings(GemModel, Embeddings):
    """Embeds queries and documents, each with the model's prompt for it; texts are not altered.

    Attributes:
        encode_kwargs: Settings of `Gem.embed_documents`, such as `truncation`.
        query_encode_kwargs: The same for queries; by default `encode_kwargs`.
        show_progress: Whether to show a progress bar while documents are embedded.
    """

    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    show_progress: bool = False

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents.

        Args:
            texts: The documents.

        Returns:
            A unit vector for each document.
        """
        settings = {"progress": self.show_progress, **self.encode_kwargs}
        vectors = self.gem.embed_documents(texts, **settings)
        # Row by row: one tolist() of the whole array would hold the GIL and stall event loops.
        return [vector.tolist() for vector in vectors]

    def embed_query(self, text: str) -> list[float]:
        """Embed a query.

        Args:
            text: The query.

        Returns:
            A unit vector.
        """
        settings = self.query_encode_kwargs or self.encode_kwargs
        vector: list[float] = self.gem.embed_queries([text], **settings)[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents in a thread; concurrent calls are batched together."""
        return await run_in_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query in a thread; concurrent calls are batched together."""
        return await run_in_thread(self.embed_query, text)
