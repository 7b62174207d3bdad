"""`GemRetriever`: retrieval from a gem-rag index, which is kept in sync with its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, ModelWrapValidatorHandler, model_validator

from gem_rag import Document as GemDocument
from gem_rag import Hit, Index, InputError, Ranking, StoreName, SyncReport
from gem_rag.aio import run_in_thread
from langchain_gem._shared import GemModel


class GemRetriever(GemModel, BaseRetriever):
    """Retrieves passages from an index; metadata give their place in the source and their score.

    Attributes:
        folder: The folder of the index, opened with `model` on first use and created if it does
            not exist. The argument `index` also takes an open `Index`, which has its own model.
        store: "faiss" (default) or "chroma" for a new index; an existing one keeps its own.
        k: Number of passages to retrieve, unless a call says otherwise.
        ranking: "hybrid", "vectors" or "words" (BM25); the score is the cosine in any case.
        sources: Patterns, as in a .gitignore file, of the documents to search; default all.
        where: Conditions on documents' metadata, as for `Index.search`.
        min_score: The least cosine of a passage.
        diversity: From 0 to 1, against passages that repeat each other.
        reranked: How many of the best passages the model puts in a better order.
    """

    model_config = GemModel.model_config  # BaseRetriever's would ignore unknown fields

    _positional: ClassVar[str] = "index"

    folder: str = Field(alias="index")
    store: StoreName | None = None
    k: int = 5
    ranking: Ranking = "hybrid"
    sources: Sequence[str] = ()
    where: dict[str, Any] = Field(default_factory=dict)
    min_score: float | None = None
    diversity: float = 0.0
    reranked: int = 0

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def index(self) -> Index:
        """The index, opened on first access.

        Raises:
            GemError: The index was built with another model.
        """
        return self.resources.get_or_create(
            self._index_key, lambda: Index.open(self.folder, self.gem, self.store)
        )

    @property
    def _index_key(self) -> Hashable:
        return self.folder, self.store, self._model_key(self.model_name)

    def sync(
        self, items: Iterable[str | Path | GemDocument | Document], *, progress: bool = False
    ) -> SyncReport:
        """Bring the index up to date with files, folders and documents, as `Index.sync` does.

        Args:
            items: Files, folders, `gem_rag.Document`s, or LangChain's, whose source is their
                metadata's "source", with a number from the second one on, or else their id.
            progress: Whether to show a progress bar.

        Returns:
            What was added, changed, removed and embedded.
        """
        return self.index.sync(from_langchain(items), progress=progress)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return self._search(query, k)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return await run_in_thread(self._search, query, k)

    def _search(self, query: str, k: int | None) -> list[Document]:
        hits = self.index.search(
            query,
            self.k if k is None else k,
            ranking=self.ranking,
            sources=self.sources,
            where=self.where,
            min_score=self.min_score,
            diversity=self.diversity,
            reranked=self.reranked,
        )
        return [_to_document(hit) for hit in hits]

    @model_validator(mode="wrap")
    @classmethod
    def _accept_index(cls, values: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Accept an `Index` or a path as `index`: the field holds its folder, the cache the index.

        Raises:
            ValueError: An `Index` is given together with another model.
        """
        if not isinstance(values, Mapping):
            return build(values)
        field = "index" if "index" in values else "folder"
        index = values.get(field)
        if isinstance(index, Path):
            values = {**values, field: str(index)}
        if not isinstance(index, Index):
            return build(values)
        if values.get("model", index.gem) is not index.gem:
            raise ValueError("an Index has its model: leave model out, or give the index's folder")
        retriever = build({**values, field: str(index.folder), "model": index.gem})
        retriever.resources.get_or_create(retriever._index_key, lambda: index)
        return retriever


def from_langchain(
    items: Iterable[str | Path | GemDocument | Document],
) -> list[str | Path | GemDocument]:
    """LangChain's documents as gem-rag's; everything else as it is.

    Raises:
        InputError: A document has neither a source nor an id.
    """
    found: list[str | Path | GemDocument] = []
    counts: Counter[str] = Counter()
    for item in items:
        if isinstance(item, Document):
            source = str(item.metadata.get("source") or item.id or "")
            if not source:
                raise InputError(
                    f"the document {item.page_content[:40]!r} has no metadata 'source' and no id, "
                    "by which it is known when it changes: give it one"
                )
            counts[source] += 1
            name = source if counts[source] == 1 else f"{source}#{counts[source]}"
            metadata = {key: value for key, value in item.metadata.items() if key != "source"}
            found.append(GemDocument(name, item.page_content, metadata=metadata))
        else:
            found.append(item)
    return found


def _to_document(hit: Hit) -> Document:
    chunk = hit.chunk
    metadata = {
        **hit.metadata,
        "source": chunk.source,
        "title": chunk.title,
        "start": chunk.start,
        "stop": chunk.stop,
        "place": hit.place,
        "score": hit.score,
    }
    return Document(chunk.text, id=chunk.id, metadata=metadata)
