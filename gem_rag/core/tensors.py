"""Tensors in safetensors files as bytes, and their hash."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def _read_tensors(files: Sequence[Path]) -> Iterator[tuple[str, str, list[int], memoryview]]:
    """Name, dtype, shape and bytes of all tensors in safetensors files, sorted by name.

    Parses the header (eight bytes of length, then JSON) itself: the library's readers make arrays,
    and numpy has no bfloat16.
    """
    entries: list[tuple[str, Any, memoryview]] = []
    for file in files:
        with file.open("rb") as handle:
            view = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        size = int.from_bytes(view[:8], "little")
        for name, entry in json.loads(bytes(view[8 : 8 + size])).items():
            if name != "__metadata__":
                start, stop = (8 + size + offset for offset in entry["data_offsets"])
                entries.append((name, entry, view[start:stop]))
    for name, entry, data in sorted(entries, key=lambda entry: entry[0]):
        yield name, entry["dtype"], entry["shape"], data


def hash_tensors(files: Sequence[Path], digest: hashlib._Hash) -> None:
    """Add all tensors in safetensors files to a digest, however they are sharded."""
    for name, dtype, shape, data in _read_tensors(files):
        digest.update(f"{name} {dtype} {shape}".encode())
        digest.update(data)


def weights_hash(folder: Path) -> str:
    """64 hexadecimal digits that identify a model folder's weights."""
    digest = hashlib.sha256()
    hash_tensors(list(folder.glob("*.safetensors")), digest)
    return digest.hexdigest()
