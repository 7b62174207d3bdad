"""`Store`: what finds the vectors nearest to a query's.

The vectors themselves are in `VectorFiles`, and the index's database decides which of them count.
So what a store makes may be ahead of a commit, or behind it: it may return chunks that have been
removed, and never one that is not in the commit's files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from gem_rag.core.arrays import FloatArray, IntArray
from gem_rag.rag.vector_files import VectorFiles

Nearest = list[tuple[int, float]]  # numbers of chunks and cosines, best first
FindLive = Callable[[Sequence[int]], set[int]]


class Store(ABC):
    """Search among a commit's vectors, which are unit vectors, by cosine.

    Args:
        folder: The index's folder.
        model: Fingerprint of the model that makes the vectors.
        vectors: The commit's vectors.
        live: How many of them are of chunks that have not been removed.
        files: The store's own files of the commit, as `prepare` named them.
    """

    def __init__(
        self, folder: Path, model: str, vectors: VectorFiles, live: int, files: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.model = model
        self.vectors = vectors
        self.live = live
        self.files = list(files)

    @abstractmethod
    def search(self, queries: FloatArray, k: int) -> list[Nearest]:
        """The k nearest chunks of each query, float32 [n, dim], of the commit's files.

        Raises:
            GemError: The store is damaged.
            FileNotFoundError: A file of it is missing.
        """

    def add(self, chunks: IntArray, vectors: FloatArray) -> None:  # noqa: B027
        """Take up vectors of a commit in the making, float32 [n, dim]."""

    def prepare(self, vectors: VectorFiles, live: int) -> list[str]:
        """Make what searching a commit needs, before it is committed.

        Args:
            vectors: All of its vectors.
            live: How many of them are of chunks that have not been removed.

        Returns:
            Names of the files that the commit is to keep.
        """
        return []

    def clean(self, removed: Sequence[int], find_live: FindLive) -> None:  # noqa: B027
        """Remove what this commit does not need; only for the holder of the write lock.

        Args:
            removed: Chunks that the commit removed.
            find_live: Tells which of some chunks are in the commit.
        """

    def keep_open(self, earlier: Store) -> None:  # noqa: B027
        """Keep what the store of an earlier commit has open and this one needs too."""

    def reset(self) -> None:  # noqa: B027
        """Make room for new vectors where the old ones cannot even be opened."""
