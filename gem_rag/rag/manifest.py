"""The index folder on disk: a manifest that names immutable files, replaced atomically.

A commit writes new files, flushes them, then replaces `manifest.json`: a crash at any point leaves
the old manifest with its old files, or the new one with the new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gem_rag._utils.files import flush_to_disk, write_atomically
from gem_rag.core.config import from_dict
from gem_rag.errors import GemError, InputError

NAME = "manifest.json"
FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, 2)


@dataclass(frozen=True)
class Manifest:
    """What an index holds.

    Attributes:
        model: Name of the model that made its vectors, for people to read.
        fingerprint: Of that model; decides whether a query's vector can be compared.
        dim: Length of a vector.
        store: "faiss" or "chroma".
        chunk_tokens: The most tokens in a chunk.
        generation: Number of the commit, from 1.
        documents: How many.
        chunks: How many.
        files: Checksum (sha256) of each file of the commit, by name.
        roots: Absolute paths of the files and folders that were synced, by the name that the
            sources below them begin with.
        dtype: What the model computed in; empty if that was not recorded.
        metric: How vectors are compared.
        format_version: 1 has no roots, and chunks without titles.
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
    roots: dict[str, str] = field(default_factory=dict)
    dtype: str = ""
    metric: str = "cosine"
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Read a folder's manifest.

        Returns:
            The manifest, or None if there is no index yet.

        Raises:
            InputError: The folder holds something else, or an index of another format.
            GemError: The manifest is damaged.
        """
        path = folder / NAME
        if not path.exists():
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder} is a file: give a folder for the index")
            if folder.exists() and not all(map(_may_precede_a_commit, folder.iterdir())):
                raise InputError(f"{folder} holds other files and no index: give another folder")
            return None
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            version = state["format_version"]
        except (ValueError, KeyError, TypeError):
            raise GemError(
                f"{path} is damaged: restore it, or delete {folder} and index again"
            ) from None
        if version not in _READABLE_VERSIONS:
            raise InputError(
                f"{folder} has index format {version} and this gem-rag reads {FORMAT_VERSION}: "
                "install the gem-rag that made it, or index again into another folder"
            )
        return from_dict(cls, state, str(path))

    @classmethod
    def read_existing(cls, folder: Path) -> Manifest:
        """As `read`; raises InputError if there is no index."""
        manifest = cls.read(folder)
        if manifest is None:
            raise InputError(f"there is no index in {folder}: make one with gem-rag index")
        return manifest

    def commit(self, folder: Path, files: Sequence[Path]) -> Manifest:
        """Make this, with the checksums of `files`, the folder's manifest."""
        for file in files:
            flush_to_disk(file)
        checksums = {file.name: checksum(file) for file in files}
        committed = dataclasses.replace(self, files=checksums, format_version=FORMAT_VERSION)
        state = json.dumps(dataclasses.asdict(committed), indent=2)
        write_atomically(folder / NAME, state + "\n")
        return committed

    def verify(self, folder: Path) -> None:
        """Check the commit's files.

        Raises:
            FileNotFoundError: One is missing.
            GemError: One has changed.
        """
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


def _may_precede_a_commit(entry: Path) -> bool:
    """Whether this may be in an index folder whose first commit never finished."""
    return entry.name.startswith((".", "documents-", "vectors-")) or entry.name == "chroma"
