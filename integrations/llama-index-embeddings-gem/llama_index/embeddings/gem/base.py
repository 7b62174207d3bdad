"""`GemEmbedding`: a gem-rag model as a LlamaIndex embedding model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field
from llama_index.embeddings.gem.shared import GemComponent

from gem_rag import Gem, InputError
from gem_rag.adapters import embed_with_blanks
from gem_rag.aio import run_in_thread


class GemEmbedding(GemComponent, BaseEmbedding):
    """Embeds queries and texts as unit vectors, each with the model's prompt for it.

    A blank text, which a splitter may give, has the vector of a space.

    The model is loaded on first use; an `embeddings_cache`, whose check needs the model's prompts,
    loads it at once. Embeddings of the same model within a process share one set of weights.
    Asynchronous calls run in threads and never block the event loop.

    Args:
        model: A name that `gem_rag.load` accepts (bundled, a local folder, or a hub name), or a
            `Gem`, which its owner closes.
        **settings: The fields below and those of `BaseEmbedding`.

    Attributes:
        model_name: The name of the model.
        engine: What runs a named model, as in `gem_rag.load`.
        model_kwargs: Further options of `gem_rag.load` for a named model.
        embed_batch_size: Number of texts in one call of the model.

    Raises:
        InputError: An `embeddings_cache` is given for a model whose prompts for queries and
            documents differ.
    """

    embed_batch_size: int = Field(
        default=512,
        description="Texts in one call of the model, which batches them by length itself.",
        gt=0,
        le=2048,
    )

    def __init__(self, model: str | Path | Gem = "gem-tiny", **settings: Any) -> None:
        super().__init__(model, **settings)
        if self.embeddings_cache is not None:
            self._check_cache()

    @classmethod
    def class_name(cls) -> str:
        """The identifier of the class in serialized settings."""
        return "GemEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return embed_with_blanks(self.gem, "query", [query])[0].tolist()

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        # Row by row: one tolist() of the whole array would hold the GIL and stall event loops.
        return [vector.tolist() for vector in embed_with_blanks(self.gem, "document", texts)]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await run_in_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await run_in_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await run_in_thread(self._get_text_embeddings, texts)

    def _check_cache(self) -> None:
        """Refuse a cache, which is keyed by text alone, where queries and documents differ."""
        prompts = self.gem.config.prompts
        if prompts["query"] != prompts["document"]:
            raise InputError(
                f"{self.model_name} embeds queries with the prompt {prompts['query']!r} and "
                f"documents with {prompts['document']!r}, but an embeddings_cache knows one vector "
                "for each text: leave embeddings_cache out"
            )
