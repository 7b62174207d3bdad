"""`GemEmbeddings`: embeddings of queries and documents."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings
from pydantic import Field

from gem_rag.adapters import embed_with_blanks, without_harmless
from gem_rag.aio import run_in_thread
from langchain_gem._shared import GemModel


class GemEmbeddings(GemModel, Embeddings):
    """Embeds queries and documents, each with the model's prompt for it; texts are not altered.

    A blank text, which a loader may give, has the vector of a space.

    Attributes:
        encode_kwargs: Settings of `Gem.embed_documents`, such as `truncation`; those of
            sentence-transformers that change nothing here may stay.
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
        settings = {"progress": self.show_progress, **_own_settings(self.encode_kwargs)}
        vectors = embed_with_blanks(self.gem, "document", texts, **settings)
        # Row by row: one tolist() of the whole array would hold the GIL and stall event loops.
        return [vector.tolist() for vector in vectors]

    def embed_query(self, text: str) -> list[float]:
        """Embed a query.

        Args:
            text: The query.

        Returns:
            A unit vector.
        """
        settings = _own_settings(self.query_encode_kwargs or self.encode_kwargs)
        vector: list[float] = embed_with_blanks(self.gem, "query", [text], **settings)[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents in a thread; concurrent calls are batched together."""
        return await run_in_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query in a thread; concurrent calls are batched together."""
        return await run_in_thread(self.embed_query, text)


# Settings of sentence-transformers' `encode` that ask for what is done anyway.
_USUAL: dict[str, tuple[Any, ...]] = {
    "normalize_embeddings": (True,), "convert_to_numpy": (True,), "convert_to_tensor": (False,),
    "precision": ("float32",), "output_value": ("sentence_embedding",),
}  # fmt: skip
_IGNORED = ("batch_size", "show_progress_bar", "device", "chunk_size")


def _own_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of gem-rag's; raises InputError for one that would change the vectors."""
    return without_harmless(settings, _IGNORED, _USUAL)
