"""`GemVectorStore`: a gem-rag index as a LangChain vector store."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

import gem_rag
from gem_rag import Document as GemDocument
from gem_rag import Gem, Index, InputError, Ranking, StoreName
from gem_rag.adapters import best_documents
from langchain_gem.embeddings import GemEmbeddings


class GemVectorStore(VectorStore):
    """Documents in an index on disk, embedded by the index's own model.

    A text that is longer than a chunk of the index is split there, found by its best chunk, and
    returned whole. Everything is on disk when a call returns.

    Args:
        index: The folder of an index, or an `Index`.
        model: The model of a folder's index: a name that `gem_rag.load` accepts, or a `Gem`.
        store: "faiss" (default) or "chroma" for a new index.
        ranking: "vectors", "hybrid" or "words" (BM25), unless a search says otherwise; the score is
            the cosine in any case.

    Raises:
        GemError: The index was built with another model.
    """

    def __init__(
        self,
        index: Index | str | Path,
        model: str | Gem = "gem-tiny",
        *,
        store: StoreName | None = None,
        ranking: Ranking = "vectors",
    ) -> None:
        if not isinstance(index, Index):
            gem = model if isinstance(model, Gem) else gem_rag.load(model)
            index = Index.open(index, gem, store)
        self.index = index
        self.ranking = ranking

    @property
    def embeddings(self) -> GemEmbeddings:
        """The index's model."""
        return GemEmbeddings.model_validate({"model": self.index.gem})

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        index: str | Path = "gem-index",
        **kwargs: Any,
    ) -> Self:
        """Put texts into an index in a folder.

        Args:
            texts: The texts.
            embedding: A `GemEmbeddings`, whose model the index uses.
            metadatas: Of each text.
            ids: Of each text; default new ones.
            index: The folder.
            **kwargs: As for the class.

        Raises:
            InputError: The embeddings are others.
        """
        if not isinstance(embedding, GemEmbeddings):
            raise InputError(
                f"GemVectorStore embeds with gem-rag's models, not with {type(embedding).__name__}:"
                " give GemEmbeddings"
            )
        filled = cls(index, embedding.gem, **kwargs)
        filled.add_texts(texts, metadatas, ids=ids)
        return filled

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, or replace those of known ids.

        Args:
            texts: The texts.
            metadatas: Of each text; values are texts, numbers and truth values.
            ids: Of each text; default new ones.
            **kwargs: Ignored.

        Returns:
            The ids.
        """
        texts = list(texts)
        ids = [one or str(uuid.uuid4()) for one in (ids or [""] * len(texts))]
        documents = [
            GemDocument(source, text, metadata=metadata)
            for source, text, metadata in zip(
                ids, texts, metadatas or [{}] * len(texts), strict=True
            )
        ]
        if documents:
            self.index.sync(documents)
        return ids

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove documents; those that are not there are left out.

        Args:
            ids: Which; default all.
            **kwargs: Ignored.

        Returns:
            True.
        """
        known = set(self.index.sources)
        if gone := known if ids is None else known & set(ids):
            self.index.remove(sorted(gone))
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids that there are."""
        known = set(self.index.sources)
        return [self._document(source) for source in ids if source in known]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k documents nearest to a query; keywords as for `similarity_search_with_score`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k documents nearest to a query, with their cosines.

        Args:
            query: What to look for.
            k: How many.
            **kwargs: `filter`, conditions on metadata, or a function of it, as in `where` of
                `Index.search`, and that method's settings.

        Returns:
            Documents and cosines, best first.
        """
        return self._search(query, k, None, kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        """The k documents nearest to a vector of the index's model.

        Args:
            embedding: The vector, as of `embeddings`.
            k: How many.
            **kwargs: As for `similarity_search_with_score`, but for the ranking.

        Returns:
            The documents, best first.

        Raises:
            InputError: The vector is of another length.
        """
        found = self._search("", k, embedding, {**kwargs, "ranking": "vectors"})
        return [document for document, _ in found]

    def _search(
        self, query: str, k: int, vector: list[float] | None, options: dict[str, Any]
    ) -> list[tuple[Document, float]]:
        settings = {"ranking": self.ranking, **options}
        if (conditions := settings.pop("filter", None)) is not None:
            settings["where"] = conditions
        found = best_documents(self.index, query, k, vector, **settings)
        return [(self._document(source), score) for source, score in found]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Documents that are near to a query and do not repeat each other.

        Args:
            query: What to look for.
            k: How many.
            fetch_k: Ignored: the index decides how many it compares.
            lambda_mult: From 0, for the least repetition, to 1, for the nearest.
            **kwargs: As for `similarity_search_with_score`.

        Returns:
            The documents.
        """
        return self.similarity_search(query, k, diversity=1 - lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, by a vector of the index's model."""
        return self.similarity_search_by_vector(embedding, k, diversity=1 - lambda_mult, **kwargs)

    def _select_relevance_score_fn(self) -> Any:
        return lambda cosine: max(0.0, cosine)

    def _document(self, source: str) -> Document:
        document = self.index.document(source)
        return Document(document.text, id=source, metadata=dict(document.metadata))
