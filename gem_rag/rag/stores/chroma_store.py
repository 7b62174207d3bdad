"""Chroma: vectors in a Chroma database on disk, where other Chroma users can read them too.

Chroma's files are one mutable database, so a commit is what the manifest's ids say: vectors are
added before it and stale ones deleted after it, and whatever the ids do not name is not seen.

Knows nothing about documents or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from chromadb.config import Settings

from gem_rag.core.arrays import FloatArray
from gem_rag.rag.stores.store import Store

FOLDER = "chroma"


class ChromaStore(Store):
    """A persistent collection with cosine distance."""

    @cached_property
    def _client(self) -> Any:
        # On first use, since making a client makes files.
        settings = Settings(anonymized_telemetry=False)
        return chromadb.PersistentClient(path=str(self.folder / FOLDER), settings=settings)

    @cached_property
    def _collection(self) -> Any:
        return self._client.get_or_create_collection(
            self._name, metadata={"hnsw:space": "cosine"}, embedding_function=None
        )

    @property
    def _name(self) -> str:
        # One for each model, so that re-embedding leaves the old vectors alone until it is done.
        return f"gem-{self.model[:32]}"

    def load(self, ids: Sequence[str], generation: int) -> None:
        self.ids = list(ids)
        self._live = set(self.ids)

    def search(self, queries: FloatArray, k: int) -> list[list[tuple[str, float]]]:
        # Uncommitted vectors of a write under way may rank too; ask for that many more.
        stale = max(0, self._collection.count() - len(self.ids))
        found = self._collection.query(
            query_embeddings=queries, n_results=min(k, len(self.ids)) + stale, include=["distances"]
        )
        return [
            [(id, 1.0 - distance) for id, distance in zip(*pair, strict=True) if id in self._live][
                :k
            ]
            for pair in zip(found["ids"], found["distances"], strict=True)
        ]

    def vectors(self, ids: Sequence[str]) -> FloatArray:
        found: dict[str, Any] = {}
        for part in self._parts(ids):
            got = self._collection.get(ids=list(part), include=["embeddings"])
            found |= zip(got["ids"], got["embeddings"], strict=True)
        return np.array([found[id] for id in ids], dtype=np.float32).reshape(-1, self.dim)

    def stage(
        self, ids: Sequence[str], fresh: Sequence[str], vectors: FloatArray, generation: int
    ) -> list[Path]:
        done = 0
        for part in self._parts(fresh):
            self._collection.upsert(ids=list(part), embeddings=vectors[done : done + len(part)])
            done += len(part)
        return []

    def clean(self) -> None:
        for collection in self._client.list_collections():
            if collection.name != self._name:
                self._client.delete_collection(collection.name)
        if self._collection.count() == len(self.ids):
            return
        present = self._collection.get(include=[])["ids"]
        for part in self._parts([id for id in present if id not in self._live]):
            self._collection.delete(ids=list(part))

    def _parts(self, ids: Sequence[str]) -> Iterator[Sequence[str]]:
        size = self._client.get_max_batch_size()
        for start in range(0, len(ids), size):
            yield ids[start : start + size]
