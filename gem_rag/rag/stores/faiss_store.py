"""FAISS: exact search in memory, one immutable file for each commit.

Knows nothing about documents or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from gem_rag.core.arrays import FloatArray
from gem_rag.rag.stores.store import Store


class FaissStore(Store):
    """A flat inner-product index; row i of the file belongs to the i-th id."""

    def load(self, ids: Sequence[str], generation: int) -> None:
        self.ids = list(ids)
        self._file = self._path(generation)
        self._rows = {id: row for row, id in enumerate(self.ids)}
        if self.ids:
            if not self._file.exists():
                raise FileNotFoundError(self._file)
            self._index = faiss.read_index(str(self._file))
        else:
            self._index = faiss.IndexFlatIP(self.dim)

    def search(self, queries: FloatArray, k: int) -> list[list[tuple[str, float]]]:
        scores, rows = self._index.search(queries, min(k, len(self.ids)))
        return [
            [(self.ids[row], float(score)) for row, score in zip(*pair, strict=True)]
            for pair in zip(rows, scores, strict=True)
        ]

    def vectors(self, ids: Sequence[str]) -> FloatArray:
        if not ids:
            return np.empty((0, self.dim), dtype=np.float32)
        found: FloatArray = self._index.reconstruct_batch(
            np.array([self._rows[id] for id in ids], dtype=np.int64)
        )
        return found

    def stage(
        self, ids: Sequence[str], fresh: Sequence[str], vectors: FloatArray, generation: int
    ) -> list[Path]:
        new = set(fresh)
        kept = [id for id in ids if id not in new]
        rows = dict(zip([*kept, *fresh], range(len(ids)), strict=True))
        everything = np.concatenate([self.vectors(kept), vectors])
        index = faiss.IndexFlatIP(self.dim)
        index.add(np.ascontiguousarray(everything[[rows[id] for id in ids]], dtype=np.float32))
        path = self._path(generation)
        faiss.write_index(index, str(path))
        return [path]

    def clean(self) -> None:
        for path in self.folder.glob("vectors-*.faiss"):
            if path != self._file:
                path.unlink(missing_ok=True)

    def _path(self, generation: int) -> Path:
        return self.folder / f"vectors-{generation}.faiss"
