"""`ChromaStore`: vectors in a Chroma database on disk, where other Chroma users can read them too.

Chroma's files are one mutable database, so a commit is what the manifest's ids say: vectors are
added before it and stale ones deleted after it, and what the ids do not name is never returned.
The commit's own vectors are also in a checksummed file, which scores are computed from: a damaged
database is noticed and never served.
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

from gem_rag._utils.files import create_file
from gem_rag.core.arrays import FloatArray
from gem_rag.errors import GemError
from gem_rag.rag.stores.store import Store

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
    """A persistent collection with cosine distance."""

    def load(self, ids: Sequence[str], generation: int) -> None:
        self.ids = list(ids)
        self._row_of = {id: row for row, id in enumerate(self.ids)}
        self._file = self._path(generation)
        # An index of format 1 has no such file.
        has_file = self.ids and self._file.exists()
        self._vectors = np.load(self._file, mmap_mode="r") if has_file else None
        if self.ids:
            self._check_count()

    def search(self, queries: FloatArray, k: int) -> list[list[tuple[str, float]]]:
        limit = min(k, len(self.ids))
        count = self._check_count()
        results = limit + count - len(self.ids)  # those of a write under way may rank too
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

    def _query(self, queries: FloatArray, results: int) -> list[list[tuple[str, float]]]:
        """Committed ids and cosines among the nearest `results` of each query."""
        with self._readable_errors():
            response = self._collection.query(
                query_embeddings=queries, n_results=results, include=["distances"]
            )
        return [
            [
                (id, self._score(query, id, 1.0 - distance))
                for id, distance in zip(ids, distances, strict=True)
                if id in self._row_of
            ]
            for query, ids, distances in zip(
                queries, response["ids"], response["distances"], strict=True
            )
        ]

    def vectors(self, ids: Sequence[str]) -> FloatArray:
        if self._vectors is not None:
            rows = [self._row_of[id] for id in ids]
            return np.asarray(self._vectors[rows], dtype=np.float32).reshape(-1, self.dim)
        embeddings: dict[str, Any] = {}
        with self._readable_errors():
            for batch in self._batches(ids):
                result = self._collection.get(ids=list(batch), include=["embeddings"])
                embeddings |= zip(result["ids"], result["embeddings"], strict=True)
        if missing := [id for id in ids if id not in embeddings]:
            raise self._damaged(f"it lacks {len(missing)} vectors that were committed")
        return np.array([embeddings[id] for id in ids], dtype=np.float32).reshape(-1, self.dim)

    def stage(
        self,
        ids: Sequence[str],
        new_ids: Sequence[str],
        new_vectors: FloatArray,
        generation: int,
    ) -> list[Path]:
        new = set(new_ids)
        kept = [id for id in ids if id not in new]
        vectors = np.concatenate([self.vectors(kept), new_vectors])
        row_of = dict(zip([*kept, *new_ids], range(len(ids)), strict=True))
        path = self._path(generation)
        with create_file(path) as file:
            np.save(file, np.asarray(vectors[[row_of[id] for id in ids]], dtype=np.float32))
        added = 0
        with self._readable_errors():
            for batch in self._batches(new_ids):
                embeddings = new_vectors[added : added + len(batch)]
                self._collection.upsert(ids=list(batch), embeddings=embeddings)
                added += len(batch)
        return [path]

    def clean(self) -> None:
        for path in self.folder.glob("vectors-*.npy"):
            if path != self._file:
                path.unlink(missing_ok=True)
        with self._readable_errors():
            for collection in self._client.list_collections():
                if collection.name != self._name:
                    self._client.delete_collection(collection.name)
            if self._collection.count() == len(self.ids):
                return
            present = self._collection.get(include=[])["ids"]
            for batch in self._batches([id for id in present if id not in self._row_of]):
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
        return f"gem-{self.model[:32]}"

    def _path(self, generation: int) -> Path:
        return self.folder / f"vectors-{generation}.npy"

    def _check_count(self) -> int:
        """How many vectors the collection holds; raises GemError if some must be missing."""
        if not (self.folder / FOLDER).exists():
            raise self._damaged("it is missing")
        with self._readable_errors():
            count = int(self._collection.count())
        if count < len(self.ids):
            raise self._damaged(f"it holds {count} vectors, and {len(self.ids)} were committed")
        return count

    def _score(self, query: FloatArray, id: str, cosine: float) -> float:
        """The cosine by the committed vector; raises GemError if Chroma's is of another vector."""
        if self._vectors is None:
            return cosine
        score = float(query @ self._vectors[self._row_of[id]])
        if abs(score - cosine) > _TOLERANCE:
            raise self._damaged("it holds other vectors than were committed")
        return score

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
