"""`FaissStore`: exact search while an index is small; beyond, FAISS's approximate ones, rescored.

Up to 50,000 vectors every one is compared. More of them are put into a graph (HNSW) of vectors
quantized to 8 bits a dimension, and from four million on into lists of product-quantized codes
(IVF-PQ): files that are mapped into memory, searched for several times what is asked for, and
rescored by the vectors themselves. Vectors that came since are compared one by one until there are
so many that the file is made anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import faiss
import numpy as np

from gem_rag._utils.files import publish
from gem_rag.core.arrays import FloatArray, IntArray
from gem_rag.rag.stores.store import FindLive, Nearest, Store
from gem_rag.rag.vector_files import (
    VectorFiles,
    check_digest,
    file_digest,
    remove_unneeded,
)

EXACT = 50_000  # vectors that are compared one by one
GRAPH = 4_000_000  # vectors in a graph; more are too many for memory while it is made
_NEW = 0.05  # of the file's vectors, that may come before it is made anew
_DEAD = 0.5  # of the file's vectors, that may be removed before it is made anew
_TRAINING = 100_000  # vectors that a quantizer is trained on
_LINKS, _BUILD_BREADTH, _BREADTH = 32, 120, 160  # of HNSW
_RESCORED = 4  # times k candidates, that are rescored
_DEEPEST = 2_000  # candidates; beyond, comparing all is as fast
_PROBED = 64  # lists of IVF-PQ that a query looks into
_NAME = re.compile(r"nearest-(?P<last>\d+)-[0-9a-f]{16}\.faiss")


class FaissStore(Store):
    """Nearest vectors by FAISS."""

    def search(self, queries: FloatArray, k: int) -> list[Nearest]:
        k = min(k, len(self.vectors))
        if not k:
            return [[] for _ in queries]
        if not self.files or k > _DEEPEST:
            found = [self._exact.search(queries, k)] if not self.files else self._scan(queries, k)
        else:
            found = [self._approximate(queries, k)]
            if self._exact.ntotal:
                found.append(self._exact.search(queries, min(k, self._exact.ntotal)))
        return _merge(found, k)

    def prepare(self, vectors: VectorFiles, live: int) -> list[str]:
        covered = self._covered(vectors)
        new = len(vectors) - covered
        is_fresh = new <= max(EXACT, _NEW * covered) and live - new >= (1 - _DEAD) * covered
        if is_fresh or live <= EXACT:
            return self.files if covered and live > EXACT else []
        return [self._write(vectors, live)]

    def clean(self, removed: Sequence[int], find_live: FindLive) -> None:
        for path in self.folder.glob("nearest-*.faiss"):
            if path.name not in self.files:
                remove_unneeded(path)

    def keep_open(self, earlier: Store) -> None:
        if self.files == earlier.files and "_file" in vars(earlier):
            vars(self)["_file"] = vars(earlier)["_file"]

    # -- exact -------------------------------------------------------------------------------

    @cached_property
    def _exact(self) -> Any:
        """The vectors that no file of ours covers."""
        index = faiss.IndexIDMap(faiss.IndexFlatIP(self.vectors.dim))
        for chunks, vectors in self.vectors.blocks(after=self._last):
            index.add_with_ids(vectors, chunks)
        return index

    def _scan(self, queries: FloatArray, k: int) -> Iterator[tuple[FloatArray, IntArray]]:
        """The k nearest of each vector file."""
        for chunks, vectors in self.vectors.blocks():
            scores, rows = faiss.knn(
                queries, vectors, min(k, len(chunks)), metric=faiss.METRIC_INNER_PRODUCT
            )
            yield scores, chunks[rows]

    # -- approximate -------------------------------------------------------------------------

    @property
    def _last(self) -> int:
        """The last chunk that our file covers; -1 if there is none."""
        return int(_NAME.fullmatch(self.files[0])["last"]) if self.files else -1  # type: ignore[index]

    def _covered(self, vectors: VectorFiles) -> int:
        """How many of a commit's vectors our file covers."""
        return sum(file.rows for file in vectors.files if file.last <= self._last)

    @cached_property
    def _file(self) -> Any:
        path = self.folder / self.files[0]
        check_digest(path)
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)

    def _approximate(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """Nearest vectors by our file, with their true cosines."""
        wanted = min(_RESCORED * k, self._file.ntotal)
        _, chunks = self._file.search(queries, wanted, params=self._parameters(wanted))
        scores = np.full(chunks.shape, -np.inf, dtype=np.float32)
        for query, own, row in zip(queries, chunks, scores, strict=True):
            vectors, found = self.vectors.find(own)
            row[found] = (vectors @ query)[found]
        return scores, chunks

    def _parameters(self, wanted: int) -> Any:
        inner = faiss.downcast_index(self._file.index)
        if isinstance(inner, faiss.IndexIVF):
            return faiss.SearchParametersIVF(nprobe=_PROBED)  # type: ignore[call-arg]
        breadth = max(_BREADTH, wanted)
        return faiss.SearchParametersHNSW(efSearch=breadth)  # type: ignore[attr-defined]

    def _write(self, vectors: VectorFiles, live: int) -> str:
        index = _make_index(vectors.dim, live)
        index.train(_sample(vectors))
        mapped = faiss.IndexIDMap(index)
        for chunks, block in vectors.blocks():
            mapped.add_with_ids(block, chunks)
        temporary = self.folder / ".nearest.new"
        temporary.unlink(missing_ok=True)  # never through a link
        faiss.write_index(mapped, str(temporary))
        name = f"nearest-{vectors.files[-1].last}-{file_digest(temporary)}.faiss"
        publish(temporary, self.folder / name)
        return name


def _make_index(dim: int, count: int) -> Any:
    if count <= GRAPH:
        index = faiss.IndexHNSWSQ(
            dim,
            faiss.ScalarQuantizer.QT_8bit,  # type: ignore[arg-type]
            _LINKS,
            faiss.METRIC_INNER_PRODUCT,
        )
        index.hnsw.efConstruction = _BUILD_BREADTH
        return index
    parts = max(part for part in range(1, dim // 4 + 1) if dim % part == 0)
    lists = int(4 * count**0.5)
    return faiss.index_factory(dim, f"IVF{lists},PQ{parts}x8", faiss.METRIC_INNER_PRODUCT)


def _sample(vectors: VectorFiles) -> FloatArray:
    """Vectors from all of the files, evenly."""
    step = max(1, len(vectors) // _TRAINING)
    return np.concatenate([block[::step] for _, block in vectors.blocks()])


def _merge(found: Any, k: int) -> list[Nearest]:
    """The k best of each query, from (scores, chunks) of [queries, any number]."""
    scores, chunks = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [
        [(int(own[i]), float(row[i])) for i in best if row[i] > -np.inf and own[i] >= 0]
        for own, row, best in zip(chunks, scores, order, strict=True)
    ]
