"""`GemEmbedding`: a gem-rag model as an embedding model of LlamaIndex.

Knows nothing about how texts are tokenised, batched and embedded, which is gem-rag's, nor about
indexes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr

import gem_rag
from gem_rag.aio import run_in_thread
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.errors import InputError
from gem_rag.model import EngineName, Gem


class GemEmbedding(BaseEmbedding):
    """Unit vectors of queries and of texts, each with the model's own prompt.

    model: a name that `gem_rag.load` knows, or a `Gem`, whose owner closes it. The same name is the
        same weights, wherever it is used in a process; they are loaded at first use.

    Texts are embedded as they are. Asynchronous calls never block the event loop.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(
        default="gem-tiny", description="A bundled model, a local folder or a hub name."
    )
    engine: EngineName = Field(default="auto", description="What runs it.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of gem_rag.load."
    )
    embed_batch_size: int = Field(
        default=512,
        description="Texts in one call of the model, which batches them by length itself.",
        gt=0,
        le=2048,
    )

    _gem: Gem | None = PrivateAttr(default=None)

    def __init__(self, model: str | Path | Gem = "gem-tiny", **settings: Any) -> None:
        model = settings.pop("model_name", model)  # what it is called in `to_dict`
        name = model.name if isinstance(model, Gem) else os.fspath(model)
        super().__init__(model_name=name, **settings)
        self._gem = model if isinstance(model, Gem) else None
        if self.embeddings_cache is not None:
            self._check_cache()

    @property
    def gem(self) -> Gem:
        """The shared instance; asked for the first time, it loads the weights."""
        if self._gem is None:
            self._gem = gem_rag.load(self.model_name, self.engine, **self.model_kwargs)
        return self._gem

    @classmethod
    def class_name(cls) -> str:
        """What serialised settings are known by."""
        return "GemEmbedding"

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex would try to pickle the weights, to see whether it can.
        light = self.model_copy()
        light._gem = None
        return super(GemEmbedding, light).__getstate__()

    def _get_query_embedding(self, query: str) -> Embedding:
        return self.gem.embed_queries([query])[0].tolist()

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        # One by one, so that other threads, an event loop's say, get their turn.
        return [vector.tolist() for vector in self.gem.embed_documents(texts)]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await run_in_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await run_in_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await run_in_thread(self._get_text_embeddings, texts)

    def _check_cache(self) -> None:
        """Raises InputError if a cached vector could be taken for another."""
        model = self._gem or open_checkpoint(self.model_name, self.model_kwargs.get("revision"))
        prompts = model.config.prompts
        if prompts["query"] != prompts["document"]:
            raise InputError(
                f"{self.model_name} embeds queries with the prompt {prompts['query']!r} and "
                f"documents with {prompts['document']!r}, but an embeddings_cache knows one vector "
                "for each text: leave embeddings_cache out"
            )
