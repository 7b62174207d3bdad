"""`GemVectorStore`: a gem-rag index as a LlamaIndex vector store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from llama_index.embeddings.gem.base import GemEmbedding
from llama_index.embeddings.gem.filters import NODE_CONTENT, NODE_ID, REF_DOC_ID, make_condition
from llama_index.embeddings.gem.shared import GemComponent

from gem_rag import Document, Gem, Index, InputError, Ranking, StoreName
from gem_rag.adapters import GivenVectors, best_documents
from gem_rag.aio import run_in_thread

_FILTERABLE = (str, int, float, bool)
_TEXT_START = "_text_start"  # where the node's text begins in what is embedded of it
_RERANKED = 20  # nodes that "semantic_hybrid" reads with the query
_MODES: dict[VectorStoreQueryMode, dict[str, Any]] = {
    VectorStoreQueryMode.DEFAULT: {},
    VectorStoreQueryMode.MMR: {},
    VectorStoreQueryMode.HYBRID: {"ranking": "hybrid"},
    VectorStoreQueryMode.SEMANTIC_HYBRID: {"ranking": "hybrid", "reranked": _RERANKED},
    VectorStoreQueryMode.TEXT_SEARCH: {"ranking": "words"},
    VectorStoreQueryMode.SPARSE: {"ranking": "words"},
}


class GemVectorStore(GemComponent, BasePydanticVectorStore):
    """Nodes in an index on disk, whose own model embeds them and queries.

    Embeddings that come with nodes and queries are used, so nothing is embedded twice; they must be
    of the index's model: give `embed_model` to LlamaIndex's indexes. A node that is longer than a
    chunk of the index is split there, found by its best chunk, and returned whole. Of nodes whose
    text and embedded metadata are equal a query returns one. Everything is on disk when a call
    returns, and `persist` has nothing to do.

    Args:
        index: The folder of an index, opened with `model` on first use and created if it does not
            exist; or an open `Index`, which has its own model.
        model: A name that `gem_rag.load` accepts (default "gem-tiny"), or a `Gem`.
        **settings: The fields.

    Attributes:
        folder: The folder of the index.
        model_name: The name of the model.
        engine: What runs a named model, as in `gem_rag.load`.
        model_kwargs: Further options of `gem_rag.load` for a named model.
        store: "faiss" (default) or "chroma" for a new index.
        ranking: Of queries in the default mode: "vectors", "hybrid" or "words"; similarities are
            cosines in any case.

    Raises:
        InputError: An `Index` is given together with a model.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    folder: str = Field(description="The folder of the index.")
    store: StoreName | None = Field(default=None, description="What holds a new index's vectors.")
    ranking: Ranking = Field(default="vectors", description="Of queries in the default mode.")

    _index: Index | None = PrivateAttr(default=None)

    def __init__(
        self,
        index: Index | str | Path = "gem-index",
        model: str | Path | Gem | None = None,
        **settings: Any,
    ) -> None:
        index = settings.pop("folder", index)  # in `to_dict`
        if not isinstance(index, Index):
            super().__init__(model or "gem-tiny", folder=os.fspath(index), **settings)
            return
        if model is not None:
            raise InputError("an Index has its model: leave model out, or give the index's folder")
        super().__init__(index.gem, folder=str(index.folder), **settings)
        self._index = index

    @classmethod
    def class_name(cls) -> str:
        """The identifier of the class in serialized settings."""
        return "GemVectorStore"

    @property
    def client(self) -> Index:
        """The index, opened on first access.

        Raises:
            GemError: The index was built with another model.
        """
        if self._index is None:
            self._index = Index.open(self.folder, self.gem, self.store)
        return self._index

    @property
    def embed_model(self) -> GemEmbedding:
        """The index's model, for LlamaIndex's indexes and pipelines."""
        return GemEmbedding(self.client.gem)

    def __getstate__(self) -> dict[str, Any]:
        without_index = self.model_copy()
        without_index._index = None
        return super(GemVectorStore, without_index).__getstate__()

    # -- writing -------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes, or replace those of known ids.

        Args:
            nodes: The nodes; what has no embedding yet is embedded.
            **kwargs: Ignored.

        Returns:
            Their ids.

        Raises:
            InputError: Their embeddings are of another model.
        """
        documents = [_to_document(node) for node in nodes]
        vectors = {
            document.text: node.embedding
            for document, node in zip(documents, nodes, strict=True)
            if node.embedding is not None
        }
        if documents:
            embedder = GivenVectors(self.client.gem, vectors) if vectors else None
            self.client.sync(documents, embedder=embedder)
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document.

        Args:
            ref_doc_id: The document's id; of an unknown one there is nothing to delete.
            **delete_kwargs: Ignored.
        """
        self._remove(self.client.select({REF_DOC_ID: ref_doc_id}))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes that have one of some ids, and that filters let through.

        Args:
            node_ids: Which; None for all that the filters let through.
            filters: On their metadata.
            **delete_kwargs: Ignored.

        Raises:
            InputError: Neither is given.
        """
        if node_ids is None and filters is None:
            raise InputError("delete_nodes() needs node_ids or filters: clear() deletes everything")
        self._remove(self._select(node_ids, filters))

    def clear(self) -> None:
        """Delete all nodes."""
        self._remove(self.client.sources)

    # -- reading -------------------------------------------------------------------------------

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """The nodes that have one of some ids, and that filters let through.

        Args:
            node_ids: Which; None for all.
            filters: On their metadata.

        Returns:
            The nodes, without embeddings; those of ids in the order of these.
        """
        return [_to_node(self.client.document(name)) for name in self._select(node_ids, filters)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes nearest to a query.

        Args:
            query: A text, or an embedding of the index's model, or both; the text alone has words.
                Every mode is known but those that fit a model to the query.
            **kwargs: Settings of `Index.search`, and LlamaIndex's `mmr_threshold`.

        Returns:
            Nodes and their cosines, best first.

        Raises:
            InputError: The query has neither text nor embedding, or asks for what there is not.
        """
        if query.query_str is None and query.query_embedding is None:
            raise InputError("the query is empty: give query_str or query_embedding")
        top_k = query.similarity_top_k
        if query.mode in (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SEMANTIC_HYBRID):
            top_k = query.hybrid_top_k or top_k
        found = best_documents(
            self.client,
            query.query_str or "",
            top_k,
            query.query_embedding,
            **self._settings(query, **kwargs),
        )
        nodes = [_to_node(self.client.document(source)) for source, _ in found]
        return VectorStoreQueryResult(
            nodes=nodes,
            similarities=[score for _, score in found],
            ids=[node.node_id for node in nodes],
        )

    def _settings(
        self, query: VectorStoreQuery, mmr_threshold: float | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The settings of a search that a query asks for."""
        if query.mode not in _MODES:
            known = ", ".join(mode.value for mode in _MODES)
            raise InputError(f"there is no query mode {query.mode.value!r} here: use {known}")
        condition = make_condition(query.filters, query.node_ids or None, query.doc_ids or None)
        settings = {"ranking": self.ranking, "where": condition, **_MODES[query.mode]}
        if query.mode == VectorStoreQueryMode.MMR:
            threshold = mmr_threshold if query.mmr_threshold is None else query.mmr_threshold
            settings["diversity"] = 1 - (0.5 if threshold is None else threshold)
        elif settings["ranking"] == "hybrid" and query.alpha is not None:
            settings["ranking"] = _ranking_of(query.alpha)
        if query.query_str is None and settings["ranking"] == "hybrid":
            settings["ranking"] = "vectors"
        return {**settings, **kwargs}

    def _select(self, node_ids: Sequence[str] | None, filters: MetadataFilters | None) -> list[str]:
        """Names of nodes in the index; those of ids in the order of these."""
        if node_ids is None or filters is not None:
            chosen = self.client.select(make_condition(filters, node_ids))
        else:
            chosen = self.client.sources
        if node_ids is None:
            return chosen
        there = set(chosen)
        return [node_id for node_id in dict.fromkeys(node_ids) if node_id in there]

    def _remove(self, names: Sequence[str]) -> None:
        if names:
            self.client.remove(names)

    # -- from asyncio --------------------------------------------------------------------------

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As `add`, in a thread."""
        return await run_in_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As `delete`, in a thread."""
        await run_in_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """As `delete_nodes`, in a thread."""
        await run_in_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """As `clear`, in a thread."""
        await run_in_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`, in a thread."""
        return await run_in_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`, in a thread."""
        return await run_in_thread(self.query, query, **kwargs)


def _ranking_of(alpha: float) -> Ranking:
    """How vectors are weighed against words; the index fuses their ranks evenly."""
    rankings: dict[float, Ranking] = {0.0: "words", 0.5: "hybrid", 1.0: "vectors"}
    if alpha not in rankings:
        raise InputError(
            f"alpha={alpha} is not supported: the index fuses ranks evenly (0.5), or takes words "
            "(0) or vectors (1) alone"
        )
    return rankings[alpha]


def _to_document(node: BaseNode) -> Document:
    """A node as the index has it: what LlamaIndex embeds of it, and all else in the metadata, where
    searches see those that are text, numbers or truth values."""
    embedded, text = (node.get_content(mode) for mode in (MetadataMode.EMBED, MetadataMode.NONE))
    is_end = embedded.endswith(text)  # as in LlamaIndex's own templates
    metadata = node_to_metadata_dict(node, remove_text=is_end)
    metadata |= {NODE_ID: node.node_id, _TEXT_START: len(embedded) - len(text) if is_end else -1}
    filterable = {key: value for key, value in metadata.items() if isinstance(value, _FILTERABLE)}
    return Document(node.node_id, embedded, metadata=filterable)


def _to_node(document: Document) -> BaseNode:
    """The node; or a document that was put into the index otherwise, as one."""
    metadata = dict(document.metadata)
    if NODE_CONTENT not in metadata:
        return TextNode(id_=document.source, text=document.text, metadata=metadata)
    start = int(metadata[_TEXT_START])
    return metadata_dict_to_node(metadata, document.text[start:] if start >= 0 else None)
