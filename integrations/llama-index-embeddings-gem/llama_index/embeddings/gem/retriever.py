"""`GemRetriever`: a gem-rag index as a LlamaIndex retriever."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from gem_rag import (
    Document,
    EngineName,
    Gem,
    Hit,
    Index,
    InputError,
    Ranking,
    StoreName,
    SyncReport,
)
from gem_rag.aio import run_in_thread


class GemRetriever(BaseRetriever):
    """Retrieves the passages of an index that are most similar to a query, best first.

    Args:
        index: The folder of an index, opened with `model` on first use and created if it does not
            exist; or an open `Index`, which has its own model.
        model: A name that `gem_rag.load` accepts (default "gem-tiny"), or a `Gem`.
        engine: What runs a named model, as in `gem_rag.load`.
        model_kwargs: Further options of `gem_rag.load` for a named model.
        store: "faiss" (default) or "chroma" for a new index; an existing one keeps its own.
        similarity_top_k: Maximum number of passages for a query.
        ranking: "hybrid", "vectors" or "words" (BM25); the score is the cosine in any case.
        sources: Patterns, as in a .gitignore file, of the documents to search; default all.
        where: Conditions on documents' metadata, as for `Index.search`; default none.
        min_score: The least cosine of a passage.
        diversity: From 0 to 1, against passages that repeat each other.
        reranked: How many of the best passages the model puts in a better order.
        callback_manager: As in `BaseRetriever`.
        verbose: As in `BaseRetriever`.

    Raises:
        InputError: An `Index` is given together with a model.
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
        ranking: Ranking = "hybrid",
        sources: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        diversity: float = 0.0,
        reranked: int = 0,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(callback_manager=callback_manager, verbose=verbose)
        if isinstance(index, Index) and model is not None:
            raise InputError("an Index has its model: leave model out, or give the index's folder")
        self.similarity_top_k, self.ranking = similarity_top_k, ranking
        self.sources, self.where = sources, where or {}
        self.min_score, self.diversity, self.reranked = min_score, diversity, reranked
        self._index_or_folder = index
        self._load = partial(gem_rag.load, model or "gem-tiny", engine, **(model_kwargs or {}))
        self._store = store

    @cached_property
    def index(self) -> Index:
        """The index, opened on first access.

        Raises:
            GemError: The index was built with another model.
        """
        if isinstance(self._index_or_folder, Index):
            return self._index_or_folder
        return Index.open(self._index_or_folder, self._load(), self._store)

    def sync(self, items: Iterable[str | Path | Document], *, progress: bool = False) -> SyncReport:
        """Bring the index up to date with files, folders and documents, as `Index.sync` does.

        Args:
            items: Files, folders, or `gem_rag.Document`s.
            progress: Whether to show a progress bar.

        Returns:
            What was added, changed, removed and embedded.
        """
        return self.index.sync(items, progress=progress)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self.index.search(
            query_bundle.query_str,
            self.similarity_top_k,
            ranking=self.ranking,
            sources=self.sources,
            where=self.where,
            min_score=self.min_score,
            diversity=self.diversity,
            reranked=self.reranked,
        )
        return [NodeWithScore(node=_to_node(hit), score=hit.score) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await run_in_thread(self._retrieve, query_bundle)


def _to_node(hit: Hit) -> TextNode:
    chunk = hit.chunk
    offsets = ["start", "stop", "place"]  # of no use to a model that reads the node
    return TextNode(
        id_=chunk.id,
        text=chunk.text,
        start_char_idx=chunk.start,
        end_char_idx=chunk.stop,
        metadata={
            **hit.metadata,
            "source": chunk.source,
            "title": chunk.title,
            "start": chunk.start,
            "stop": chunk.stop,
            "place": hit.place,
        },
        excluded_llm_metadata_keys=offsets,
        excluded_embed_metadata_keys=offsets,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=chunk.source)},
    )
