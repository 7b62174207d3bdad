"""What a vector store must do for an index.

A store never decides what is committed; the index's manifest does. So a write has two steps
around the manifest's: `stage` puts the new vectors beside the old ones, and `clean` removes what
the committed manifest does not name, whether a write before it ended well or not.

Knows nothing about documents or models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from gem_rag.core.arrays import FloatArray


class Store(ABC):
    """Unit vectors by chunk id, in the index's folder, compared by cosine.

    folder: the index's folder.
    dim: length of a vector.
    model: fingerprint of the model that makes the vectors.
    """

    def __init__(self, folder: Path, dim: int, model: str) -> None:
        self.folder = folder
        self.dim = dim
        self.model = model
        self.load([], 0)

    @abstractmethod
    def load(self, ids: Sequence[str], generation: int) -> None:
        """Take up the committed state: its ids in order, and the number of its commit."""

    @abstractmethod
    def search(self, queries: FloatArray, k: int) -> list[list[tuple[str, float]]]:
        """The k nearest ids and cosines of each query [n, dim], best first."""

    @abstractmethod
    def vectors(self, ids: Sequence[str]) -> FloatArray:
        """Vectors of committed ids: [n, dim]."""

    @abstractmethod
    def stage(
        self, ids: Sequence[str], fresh: Sequence[str], vectors: FloatArray, generation: int
    ) -> list[Path]:
        """Write what the next commit will hold; returns the files to name in its manifest.

        ids: all ids of the next commit, in order.
        fresh: those that are not committed yet; `vectors` are theirs, [fresh, dim].
        """

    @abstractmethod
    def clean(self) -> None:
        """Remove what the loaded state does not need. Only for the holder of the write lock."""
