"""Tensors in safetensors files: their bytes and hash, and one by name."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


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


def read_weight(folder: Path, layer: str) -> Tensor | None:
    """A layer's weight as a checkpoint stores it; None if it has none of that name."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if f"{layer}.weight" in tensors.keys():  # noqa: SIM118 (it is no dictionary)
                weight: Tensor = tensors.get_tensor(f"{layer}.weight")
                return weight
    return None
