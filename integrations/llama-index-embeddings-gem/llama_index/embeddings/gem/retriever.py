"""`GemRetriever`: an index of gem-rag as a retriever of LlamaIndex.

Translates hits into nodes; what is indexed, and by which model, is the index's matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import (
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)

import gem_rag
from gem_rag.aio import run_in_thread
from gem_rag.documents.document import Document
from gem_rag.errors import InputError
from gem_rag.model import EngineName, Gem
from gem_rag.rag.hits import Hit
from gem_rag.rag.index import Index, StoreName, SyncReport


class GemRetriever(BaseRetriever):
    """The passages of an index that are nearest to a question, best first.

    index: an index's folder, opened with `model` at first use and made if it is not there; or an
        `Index`, with the model that it has.
    model: a name that `gem_rag.load` knows (by default gem-tiny), or a `Gem`.
    engine, model_kwargs: how a named model is loaded.
    store: "faiss" (default) or "chroma"; of an index that exists, what it was made with.
    similarity_top_k: most passages for a question.
    """

    def __init__(
        self,
        index: Index | str | Path,
        model: str | Path | Gem | None = None,
        *,
        engine: EngineName = "auto",
        model_kwargs: dict[str, Any] | None = None,
        store: StoreName | None = None,
        similarity_top_k: int = 5,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(callback_manager=callback_manager, verbose=verbose)
        if isinstance(index, Index) and model is not None:
            raise InputError("an Index has its model: leave model out, or give the index's folder")
        self.similarity_top_k = similarity_top_k
        self._given = index
        self._load = partial(gem_rag.load, model or "gem-tiny", engine, **(model_kwargs or {}))
        self._store = store

    @cached_property
    def index(self) -> Index:
        """The index. Raises GemError if it was made with another model."""
        if isinstance(self._given, Index):
            return self._given
        return Index.open(self._given, self._load(), self._store)

    def sync(self, items: Iterable[str | Path | Document], *, progress: bool = False) -> SyncReport:
        """Bring the index in step with files, folders and gem-rag documents: `Index.sync`."""
        return self.index.sync(items, progress=progress)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self.index.search(query_bundle.query_str, self.similarity_top_k)
        return [NodeWithScore(node=_node(hit), score=hit.score) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await run_in_thread(self._retrieve, query_bundle)


def _node(hit: Hit) -> TextNode:
    """A chunk under its own id, with what tells where it stands."""
    chunk = hit.chunk
    places = ["start", "stop"]  # nothing that a model should read
    return TextNode(
        id_=chunk.id,
        text=chunk.text,
        start_char_idx=chunk.start,
        end_char_idx=chunk.stop,
        metadata={
            "source": chunk.source,
            "title": chunk.title,
            "start": chunk.start,
            "stop": chunk.stop,
        },
        excluded_llm_metadata_keys=places,
        excluded_embed_metadata_keys=places,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=chunk.source)},
    )
