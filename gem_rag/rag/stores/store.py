"""`Store`: what an index needs of a vector store.

A store never decides what is committed; the index's manifest does. So a write has two steps around
the manifest's: `stage` puts the new vectors next to the old ones, and `clean` removes what the
committed manifest does not name, whether the write before it ended well or not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from gem_rag.core.arrays import FloatArray


class Store(ABC):
    """Unit vectors by chunk id, in the index's folder, compared by cosine.

    Args:
        folder: The index's folder.
        dim: Length of a vector.
        model: Fingerprint of the model that makes the vectors.
    """

    def __init__(self, folder: Path, dim: int, model: str) -> None:
        self.folder = folder
        self.dim = dim
        self.model = model
        self.load([], 0)

    @abstractmethod
    def load(self, ids: Sequence[str], generation: int) -> None:
        """Load a commit: its ids in order, and its number."""

    @abstractmethod
    def search(self, queries: FloatArray, k: int) -> list[list[tuple[str, float]]]:
        """The k nearest ids and cosines of each query, float32 [n, dim], best first."""

    @abstractmethod
    def vectors(self, ids: Sequence[str]) -> FloatArray:
        """Vectors of committed ids: float32 [n, dim]."""

    @abstractmethod
    def stage(
        self,
        ids: Sequence[str],
        new_ids: Sequence[str],
        new_vectors: FloatArray,
        generation: int,
    ) -> list[Path]:
        """Write what the next commit will hold.

        Args:
            ids: All ids of the next commit, in order.
            new_ids: Those that are not committed yet.
            new_vectors: Their vectors, float32 [new ids, dim].
            generation: Number of the next commit.

        Returns:
            The files to name in its manifest.
        """

    @abstractmethod
    def clean(self) -> None:
        """Remove what the loaded commit does not need; only for the holder of the write lock."""

    def reset(self) -> None:  # noqa: B027 (files of their own need no reset)
        """Make room for new vectors where the old ones cannot even be opened."""
