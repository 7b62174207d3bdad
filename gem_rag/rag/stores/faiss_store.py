"""`FaissStore`: exact search in memory, one immutable file for each commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from gem_rag._utils.files import create_file
from gem_rag.core.arrays import FloatArray
from gem_rag.rag.stores.store import Store


class FaissStore(Store):
    """A flat inner-product index; row i of the file belongs to the i-th id."""

    def load(self, ids: Sequence[str], generation: int) -> None:
        self.ids = list(ids)
        self._file = self._path(generation)
        self._row_of = {id: row for row, id in enumerate(self.ids)}
        if self.ids:
            if not self._file.exists():
                raise FileNotFoundError(self._file)
            self._index = faiss.read_index(str(self._file))
        else:
            self._index = faiss.IndexFlatIP(self.dim)

    def search(self, queries: FloatArray, k: int) -> list[list[tuple[str, float]]]:
        scores, rows = self._index.search(queries, min(k, len(self.ids)))
        return [
            [(self.ids[row], float(score)) for row, score in zip(*ranking, strict=True)]
            for ranking in zip(rows, scores, strict=True)
        ]

    def vectors(self, ids: Sequence[str]) -> FloatArray:
        if not ids:
            return np.empty((0, self.dim), dtype=np.float32)
        rows = np.array([self._row_of[id] for id in ids], dtype=np.int64)
        vectors: FloatArray = self._index.reconstruct_batch(rows)
        return vectors

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
        index = faiss.IndexFlatIP(self.dim)
        index.add(np.ascontiguousarray(vectors[[row_of[id] for id in ids]], dtype=np.float32))
        path = self._path(generation)
        with create_file(path) as file:
            file.write(faiss.serialize_index(index).data)
        return [path]

    def clean(self) -> None:
        for path in self.folder.glob("vectors-*.faiss"):
            if path != self._file:
                path.unlink(missing_ok=True)

    def _path(self, generation: int) -> Path:
        return self.folder / f"vectors-{generation}.faiss"
