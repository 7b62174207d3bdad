"""The index folder on disk: a manifest that names immutable files, replaced in one step.

A commit writes new files, flushes them, then replaces `manifest.json`: a crash at any point
leaves the old manifest with its old files, or the new one with the new.

Knows nothing about chunks, vectors or models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gem_rag.core.config import from_dict
from gem_rag.errors import GemError, InputError

NAME = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What an index holds.

    model: name of the model that made its vectors, for people to read.
    fingerprint: of that model; decides whether a query's vector can be compared.
    dim, metric: of the vectors.
    store: "faiss" or "chroma".
    chunk_tokens: most tokens in a chunk.
    generation: number of the commit, from 1.
    documents, chunks: how many.
    files: checksum (sha256) of each file of the commit, by name.
    """

    model: str
    fingerprint: str
    dim: int
    store: str
    chunk_tokens: int
    generation: int = 0
    documents: int = 0
    chunks: int = 0
    files: dict[str, str] = field(default_factory=dict)
    metric: str = "cosine"
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The folder's manifest, or None where there is no index yet.

        Raises InputError if the folder holds something else, or an index of another format.
        """
        path = folder / NAME
        if not path.exists():
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder} is a file: give a folder for the index")
            if folder.exists() and not all(map(_ours, folder.iterdir())):
                raise InputError(f"{folder} holds other files and no index: give another folder")
            return None
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            version = state["format_version"]
        except (ValueError, KeyError, TypeError):
            raise GemError(
                f"{path} is damaged: restore it, or delete {folder} and index again"
            ) from None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{folder} has index format {version} and this gem-rag reads {FORMAT_VERSION}: "
                "install the gem-rag that made it, or index again into another folder"
            )
        return from_dict(cls, state, str(path))

    @classmethod
    def existing(cls, folder: Path) -> Manifest:
        """As `read`; raises InputError where there is no index."""
        manifest = cls.read(folder)
        if manifest is None:
            raise InputError(f"there is no index in {folder}: make one with gem-rag index")
        return manifest

    def commit(self, folder: Path, files: Sequence[Path]) -> Manifest:
        """Make this, with the checksums of `files`, the folder's manifest."""
        for file in files:
            _flush(file)
        committed = dataclasses.replace(self, files={f.name: checksum(f) for f in files})
        new = folder / f".{NAME}.new"
        new.write_text(json.dumps(dataclasses.asdict(committed), indent=2) + "\n", encoding="utf-8")
        _flush(new)
        _flush(folder)  # the files' names must be on disk before anything refers to them
        os.replace(new, folder / NAME)
        _flush(folder)
        return committed

    def verify(self, folder: Path) -> None:
        """Raises GemError naming the file if one is missing or changed."""
        for name, expected in self.files.items():
            path = folder / name
            if not path.exists():
                raise FileNotFoundError(path)
            if checksum(path) != expected:
                raise GemError(
                    f"{path} is damaged (its checksum is not the manifest's): restore it, or "
                    f"delete {folder} and index again"
                )


def checksum(file: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def remove_others(folder: Path, pattern: str, keep: Iterable[str]) -> None:
    """Delete files of earlier commits."""
    for path in folder.glob(pattern):
        if path.name not in keep:
            path.unlink(missing_ok=True)


def _ours(entry: Path) -> bool:
    """Whether this may stand in an index folder whose first commit never ended."""
    return entry.name.startswith((".", "documents-", "vectors-")) or entry.name == "chroma"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
