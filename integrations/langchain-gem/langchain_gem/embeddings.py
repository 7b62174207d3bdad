"""`GemEmbeddings`: a model's vectors of questions and of passages."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings
from pydantic import Field

from gem_rag.aio import run_in_thread
from langchain_gem._shared import GemModel


class GemEmbeddings(GemModel, Embeddings):
    """Embeds texts as they are, each under the model's prompt for its use.

    encode_kwargs: settings of `Gem.embed_documents`: `overlong`.
    query_encode_kwargs: the same for questions; without them, `encode_kwargs`.
    show_progress: whether a bar shows how far the embedding of documents is.
    """

    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    show_progress: bool = False

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        settings = {"progress": self.show_progress, **self.encode_kwargs}
        vectors = self.gem.embed_documents(texts, **settings)
        # One by one, so that other threads, an event loop's say, get their turn.
        return [vector.tolist() for vector in vectors]

    def embed_query(self, text: str) -> list[float]:
        settings = self.query_encode_kwargs or self.encode_kwargs
        vector: list[float] = self.gem.embed_queries([text], **settings)[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await run_in_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        return await run_in_thread(self.embed_query, text)
