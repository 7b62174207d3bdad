"""The vectors of an index on disk: files that are never changed, only replaced.

A file is a numpy array of rows (chunk, passage, vector), in order of chunk, and its name ends with
the digest of its bytes. It is read through a memory map, once its digest has been checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from gem_rag._utils.files import create_file, publish
from gem_rag.core.arrays import BoolArray, FloatArray, IntArray
from gem_rag.errors import GemError

PASSAGE_BYTES = 16
_NAME = re.compile(r"vectors-(?P<model>[0-9a-f]{8})-\d+-(?P<digest>[0-9a-f]{16})\.npy")
_BLOCK = 1 << 20  # bytes hashed at once

Rows = npt.NDArray[Any]  # structured, see `row_type`


class VectorFile(NamedTuple):
    """What the index's database says of a file.

    Attributes:
        name: Its name in the index's folder.
        first: Its first chunk's number.
        last: Its last chunk's number.
        rows: How many chunks' vectors it holds, those of removed chunks included.
    """

    name: str
    first: int
    last: int
    rows: int


def row_type(dim: int) -> np.dtype[Any]:
    """Of a row: the chunk's number, its passage's digest, and its vector in float32."""
    return np.dtype([
        ("chunk", "<i8"), ("passage", f"V{PASSAGE_BYTES}"), ("vector", "<f4", (dim,)),
    ])  # fmt: skip


def write_vectors(folder: Path, model: str, rows: Rows) -> VectorFile:
    """Write a file and flush it to disk.

    Args:
        folder: The index's folder.
        model: Fingerprint of the model that made the vectors.
        rows: Of `row_type`, at least one.
    """
    temporary = folder / f".vectors-{model[:8]}.new"
    with create_file(temporary) as handle:
        np.save(handle, rows)
    first, last = int(rows["chunk"][0]), int(rows["chunk"][-1])
    name = f"vectors-{model[:8]}-{first}-{file_digest(temporary)}.npy"
    publish(temporary, folder / name)
    return VectorFile(name, first, last, len(rows))


def remove_unneeded(path: Path) -> None:
    """Remove a file that no commit names; on Windows, one that is mapped stays until the next
    time."""
    with suppress(PermissionError):
        path.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """xxh3 of a file's bytes: 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def check_digest(path: Path) -> None:
    """Check a file whose name ends with its digest.

    Raises:
        FileNotFoundError: It is missing.
        GemError: It has changed.
    """
    if not path.stem.endswith(file_digest(path)):
        raise GemError(
            f"{path} is damaged (its digest is not the one in its name): restore it, or embed "
            f"again with: gem-rag index --reembed --index {path.parent}"
        )


def leftover_vectors(folder: Path, model: str, dim: int, known: set[str]) -> list[Rows]:
    """Whole files of a model's vectors that no commit names: what an interrupted sync computed."""
    found = ((path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob("vectors-*.npy")))
    paths = [
        path
        for path, match in found
        if match and match["model"] == model[:8] and path.name not in known
        and match["digest"] == file_digest(path)
    ]  # fmt: skip
    loaded = [np.load(path, mmap_mode="r") for path in paths]
    return [rows for rows in loaded if rows.dtype == row_type(dim)]


class VectorFiles:
    """A commit's vectors by number of chunk.

    Args:
        folder: The index's folder.
        dim: Length of a vector.
        files: The commit's files, in order of chunks.
        earlier: An earlier commit's, whose files need not be opened and checked again.
    """

    def __init__(
        self,
        folder: Path,
        dim: int,
        files: Sequence[VectorFile],
        earlier: VectorFiles | None = None,
    ) -> None:
        self.folder = folder
        self.dim = dim
        self.files = list(files)
        names = {file.name for file in files}
        opened = earlier._open if earlier else {}
        self._open: dict[str, Rows] = {n: rows for n, rows in opened.items() if n in names}
        self._first = np.array([file.first for file in files], dtype=np.int64)

    def __len__(self) -> int:
        """How many vectors there are, those of removed chunks included."""
        return sum(file.rows for file in self.files)

    def rows(self, file: VectorFile) -> Rows:
        """The rows of a file, mapped into memory.

        Raises:
            FileNotFoundError: The file is missing.
            GemError: It is damaged.
        """
        if file.name not in self._open:
            path = self.folder / file.name
            check_digest(path)
            rows = np.load(path, mmap_mode="r")
            if rows.dtype != row_type(self.dim):
                raise GemError(f"{path} holds other vectors than the index says: restore it")
            self._open[file.name] = rows
        return self._open[file.name]

    def blocks(self, after: int = -1) -> Iterator[tuple[IntArray, FloatArray]]:
        """(numbers of chunks, their vectors) of each file, of the chunks after a number."""
        for file in self.files:
            if file.last > after:
                rows = self.rows(file)
                rows = rows[np.searchsorted(rows["chunk"], after, side="right") :]
                yield np.array(rows["chunk"]), np.ascontiguousarray(rows["vector"])

    def take(self, chunks: Sequence[int] | IntArray) -> FloatArray:
        """Vectors of chunks, float32 [n, dim].

        Raises:
            GemError: A chunk has none.
        """
        vectors, found = self.find(chunks)
        if not found.all():
            raise GemError(
                f"the index in {self.folder} lacks vectors of its chunks: embed again with: "
                f"gem-rag index --reembed --index {self.folder}"
            )
        return vectors

    def find(self, chunks: Sequence[int] | IntArray) -> tuple[FloatArray, BoolArray]:
        """Vectors of chunks, float32 [n, dim], and which of them there are, bool [n]."""
        numbers = np.asarray(chunks, dtype=np.int64)
        vectors = np.zeros((len(numbers), self.dim), dtype=np.float32)
        found = np.zeros(len(numbers), dtype=np.bool_)
        places = np.searchsorted(self._first, numbers, side="right") - 1
        for place in np.unique(places[places >= 0]):
            wanted = np.flatnonzero(places == place)
            rows = self.rows(self.files[place])
            vectors[wanted], found[wanted] = find_in_rows(rows, numbers[wanted])
        return vectors, found


def find_in_rows(rows: Rows, numbers: IntArray) -> tuple[FloatArray, BoolArray]:
    """Vectors of chunks in rows that are in order of chunk, and which of them there are."""
    at = np.minimum(np.searchsorted(rows["chunk"], numbers), len(rows) - 1)
    return rows["vector"][at], rows["chunk"][at] == numbers


class KnownVectors:
    """Vectors by passage, from rows of any chunks.

    Args:
        files: The rows; where they are mapped from files, they stay there.
    """

    def __init__(self, files: Sequence[Rows]) -> None:
        self._files = list(files)
        digests = [np.array(rows["passage"]).view(f"S{PASSAGE_BYTES}") for rows in files]
        self._file = np.repeat(np.arange(len(files)), [len(rows) for rows in files])
        self._row = np.concatenate([np.arange(len(rows)) for rows in files] or [np.zeros(0, int)])
        passages = np.concatenate(digests or [np.zeros(0, f"S{PASSAGE_BYTES}")])
        self._order = np.argsort(passages)
        self._sorted = passages[self._order]

    def find(self, passage: bytes) -> FloatArray | None:
        """The vector of a passage by its digest, float32 [dim]; None if it is not there."""
        wanted = np.array([passage], dtype=f"S{PASSAGE_BYTES}")
        at = int(np.searchsorted(self._sorted, wanted)[0])
        if at == len(self._sorted) or self._sorted[at] != wanted[0]:
            return None
        place = self._order[at]
        return np.array(self._files[self._file[place]]["vector"][self._row[place]])
