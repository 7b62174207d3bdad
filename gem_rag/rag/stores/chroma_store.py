"""`ChromaStore`: vectors in a Chroma database on disk, where other Chroma users can read them too.

Chroma's files are one mutable database, so vectors are added before a commit and stale ones deleted
after it, and what the commit's own files do not hold is never returned. Scores are computed from
these files: a damaged database is noticed and never served.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings
from chromadb.errors import ChromaError

from gem_rag.core.arrays import FloatArray, IntArray
from gem_rag.errors import GemError
from gem_rag.rag.stores.store import FindLive, Nearest, Store

FOLDER = "chroma"
# AttributeError: a client whose start failed lacks its bindings.
_CHROMA_ERRORS = (
    ChromaError,
    sqlite3.Error,
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    AttributeError,
)
_TOLERANCE = 1e-2  # between Chroma's cosine and ours


class ChromaStore(Store):
    """A persistent collection with cosine distance; an id is a chunk's number."""

    def search(self, queries: FloatArray, k: int) -> list[Nearest]:
        limit = min(k, self.live)
        count = self._check_count()
        results = min(k, len(self.vectors)) + count - self.live  # of a write under way may rank too
        is_fresh = False
        while True:
            rankings = self._query(queries, min(results, count))
            if all(len(ranking) >= limit for ranking in rankings):
                return [ranking[:k] for ranking in rankings]
            before, count = count, self._check_count()
            if results >= count == before:
                if is_fresh:
                    raise self._damaged("it does not hold the vectors that were committed")
                self._reconnect()
                is_fresh = True
            results = count

    def _query(self, queries: FloatArray, results: int) -> list[Nearest]:
        """Committed chunks and cosines among the nearest `results` of each query."""
        with self._readable_errors():
            response = self._collection.query(
                query_embeddings=queries, n_results=results, include=["distances"]
            )
        return [
            self._check_scores(query, [int(id) for id in ids], distances)
            for query, ids, distances in zip(
                queries, response["ids"], response["distances"], strict=True
            )
        ]

    def _check_scores(
        self, query: FloatArray, chunks: list[int], distances: Sequence[float]
    ) -> Nearest:
        """True cosines of what was committed; raises GemError if Chroma's are of other vectors."""
        vectors, found = self.vectors.find(chunks)
        cosines = vectors @ query
        if np.any(np.abs(1.0 - np.asarray(distances) - cosines)[found] > _TOLERANCE):
            raise self._damaged("it holds other vectors than were committed")
        return [
            (chunk, float(cosine))
            for chunk, cosine, is_there in zip(chunks, cosines, found, strict=True)
            if is_there
        ]

    def add(self, chunks: IntArray, vectors: FloatArray) -> None:
        with self._readable_errors():
            added = 0
            for batch in self._batches([str(chunk) for chunk in chunks]):
                embeddings = vectors[added : added + len(batch)]
                self._collection.upsert(ids=list(batch), embeddings=embeddings)
                added += len(batch)

    def clean(self, removed: Sequence[int], find_live: FindLive) -> None:
        with self._readable_errors():
            for collection in self._client.list_collections():
                if collection.name != self._name:
                    self._client.delete_collection(collection.name)
            self._delete([str(chunk) for chunk in removed])
            if self._collection.count() != self.live:  # a sync that never ended left some
                present = self._collection.get(include=[])["ids"]
                live = find_live([int(id) for id in present])
                self._delete([id for id in present if int(id) not in live])

    def _delete(self, ids: Sequence[str]) -> None:
        for batch in self._batches(ids):
            self._collection.delete(ids=list(batch))

    def reset(self) -> None:
        try:
            with self._readable_errors():
                self._collection.count()
        except GemError:
            self._reconnect()
            shutil.rmtree(self.folder / FOLDER, ignore_errors=True)

    # -- the database ------------------------------------------------------------------------

    @cached_property
    def _client(self) -> Any:
        # On first use, since creating a client creates files.
        settings = Settings(anonymized_telemetry=False)
        path = self.folder / FOLDER
        if path.exists() and not os.access(path / "chroma.sqlite3", os.W_OK):
            # Chroma opens no database that it may not write.
            self._copy = tempfile.TemporaryDirectory(prefix="gem-rag-chroma-")
            path = Path(shutil.copytree(path, Path(self._copy.name) / FOLDER))
            for entry in [path, *path.rglob("*")]:
                entry.chmod(entry.stat().st_mode | 0o700)
        return chromadb.PersistentClient(path=str(path), settings=settings)

    @cached_property
    def _collection(self) -> Any:
        return self._client.get_or_create_collection(
            self._name, metadata={"hnsw:space": "cosine"}, embedding_function=None
        )

    def _reconnect(self) -> None:
        """Read the database anew: Chroma keeps what it has read of a path for the whole process,
        and does not see all that other processes write."""
        for name in ("_client", "_collection"):
            self.__dict__.pop(name, None)
        SharedSystemClient.clear_system_cache()

    @property
    def _name(self) -> str:
        # One for each model, so that re-embedding leaves the old vectors alone until it is done.
        return f"gem-{self.model[:32]}-3"  # as in format 3, with numbers of chunks

    def _check_count(self) -> int:
        """How many vectors the collection holds; raises GemError if some must be missing."""
        if not (self.folder / FOLDER).exists():
            raise self._damaged("it is missing")
        with self._readable_errors():
            count = int(self._collection.count())
        if count < self.live:
            raise self._damaged(f"it holds {count} vectors, and {self.live} were committed")
        return count

    def _damaged(self, reason: str) -> GemError:
        return GemError(
            f"the Chroma database in {self.folder / FOLDER} is damaged ({reason}): embed again "
            f"with: gem-rag index --reembed --index {self.folder}"
        )

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Turn what Chroma, its database and its extension raise into one sentence."""
        try:
            yield
        except GemError:
            raise
        except _CHROMA_ERRORS as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            if "full" in reason or "space" in reason:
                raise GemError(f"could not write {self.folder} ({reason}): make room") from error
            raise self._damaged(reason) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Chroma's Rust extension
                raise
            raise self._damaged("its files cannot be read") from error

    def _batches(self, ids: Sequence[str]) -> Iterator[Sequence[str]]:
        size = self._client.get_max_batch_size()
        for start in range(0, len(ids), size):
            yield ids[start : start + size]
