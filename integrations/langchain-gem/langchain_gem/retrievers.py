"""`GemRetriever`: the passages of a gem-rag index, kept in step with their files.

Knows nothing about how an index is stored or searched (`gem_rag.rag.index`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, ModelWrapValidatorHandler, model_validator

from gem_rag.aio import run_in_thread
from gem_rag.documents import readers as documents
from gem_rag.rag.hits import Hit
from gem_rag.rag.index import Index, StoreName, SyncReport
from langchain_gem._shared import GemModel


class GemRetriever(GemModel, BaseRetriever):
    """Finds passages in an index; a document's metadata say where it stands and how near it is.

    index: an index's folder, opened with `model` at its first use and made if it is not there; or
        an `Index`, with the model that it has.
    store: "faiss" (default) or "chroma"; of an index that exists, what it was made with.
    k: how many passages are found, unless a call says otherwise.
    """

    model_config = GemModel.model_config  # else BaseRetriever's, which passes over wrong fields

    folder: str = Field(alias="index")
    store: StoreName | None = None
    k: int = 5

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def index(self) -> Index:
        """The index. Raises GemError if it was made with another model."""
        return self.held.get(self._where, lambda: Index.open(self.folder, self.gem, self.store))

    @property
    def _where(self) -> Hashable:
        return self.folder, self.store, self._recipe(self.model_name)

    def sync(
        self, items: Iterable[str | Path | documents.Document], *, progress: bool = False
    ) -> SyncReport:
        """Bring the index in step with files, folders and documents; see `Index.sync`."""
        return self.index.sync(items, progress=progress)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return self._search(query, k)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return await run_in_thread(self._search, query, k)

    def _search(self, query: str, k: int | None) -> list[Document]:
        hits = self.index.search(query, self.k if k is None else k)
        return [_document(hit) for hit in hits]

    @model_validator(mode="wrap")
    @classmethod
    def _take_index(cls, values: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        """Of an `Index` the field gets the folder, under which it is found from now on."""
        if not isinstance(values, Mapping):
            return make(values)
        field = "index" if "index" in values else "folder"
        given = values.get(field)
        if isinstance(given, Path):
            values = {**values, field: str(given)}
        if not isinstance(given, Index):
            return make(values)
        if values.get("model", given.gem) is not given.gem:
            raise ValueError("an Index has its model: leave model out, or give the index's folder")
        made = make({**values, field: str(given.folder), "model": given.gem})
        made.held.get(made._where, lambda: given)
        return made


def _document(hit: Hit) -> Document:
    chunk = hit.chunk
    where = {"source": chunk.source, "title": chunk.title, "start": chunk.start, "stop": chunk.stop}
    return Document(chunk.text, id=chunk.id, metadata={**where, "score": hit.score})
