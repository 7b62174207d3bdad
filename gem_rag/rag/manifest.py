"""What an index holds, in a few words: by which model, how much, from where."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gem_rag.core.config import from_dict
from gem_rag.errors import GemError, InputError
from gem_rag.rag import database

if TYPE_CHECKING:
    import apsw

OLD_NAME = "manifest.json"  # until format 2
FORMAT_VERSION = 3
_READABLE_VERSIONS = (1, 2, 3)


@dataclass(frozen=True)
class Manifest:
    """What an index holds.

    Attributes:
        model: Name of the model that made its vectors, for people to read.
        fingerprint: Of that model; decides whether a query's vector can be compared.
        dim: Length of a vector.
        store: "faiss" or "chroma".
        chunk_tokens: The most tokens in a chunk.
        context_tokens: The most tokens that chunks of a document are read in together; 0 if each
            is read by itself.
        generation: Number of the commit, from 1.
        documents: How many.
        chunks: How many.
        files: Digest of each file beside the database, by name.
        roots: Absolute paths of the files and folders that were synced, by the name that the
            sources below them begin with.
        dtype: What the model computed in; empty if that was not recorded.
        metric: How vectors are compared.
        format_version: 1 had no roots, and chunks without titles; 2 kept text and vectors in files
            that each commit wrote anew.
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
    context_tokens: int = 0
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
        if (folder / database.NAME).exists():
            with database.Database(folder).reading() as connection:
                if (manifest := cls.of(connection, folder)) is not None:
                    return manifest
        if (folder / OLD_NAME).exists():
            return cls._parse((folder / OLD_NAME).read_text(encoding="utf-8"), folder / OLD_NAME)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: give a folder for the index")
        if folder.exists() and not all(map(_may_precede_a_commit, folder.iterdir())):
            raise InputError(f"{folder} holds other files and no index: give another folder")
        return None

    @classmethod
    def read_existing(cls, folder: Path) -> Manifest:
        """As `read`; raises InputError if there is no index."""
        manifest = cls.read(folder)
        if manifest is None:
            raise InputError(f"there is no index in {folder}: make one with gem-rag index")
        return manifest

    @classmethod
    def of(cls, connection: apsw.Connection, folder: Path) -> Manifest | None:
        """The manifest of the commit that a transaction sees; None before the first."""
        states = list(connection.execute("SELECT state FROM manifest"))
        return cls._parse(states[0][0], folder / database.NAME) if states else None

    @classmethod
    def _parse(cls, text: str, path: Path) -> Manifest:
        try:
            state = json.loads(text)
            version = state["format_version"]
        except (ValueError, KeyError, TypeError):
            raise GemError(
                f"{path} is damaged: restore it, or delete {path.parent} and index again"
            ) from None
        if version not in _READABLE_VERSIONS:
            raise InputError(
                f"{path.parent} has index format {version} and this gem-rag reads "
                f"{FORMAT_VERSION}: install the gem-rag that made it, or index again into another "
                "folder"
            )
        return from_dict(cls, state, str(path))

    def write(self, connection: apsw.Connection) -> None:
        """Make this the manifest of the commit that a transaction is about to make."""
        state = json.dumps(dataclasses.asdict(self))
        connection.execute("DELETE FROM manifest")
        connection.execute("INSERT INTO manifest VALUES (?)", (state,))


def _may_precede_a_commit(entry: Path) -> bool:
    """Whether this may be in an index folder whose first commit never finished."""
    return entry.name.startswith((".", "documents-", "vectors-", "nearest-", database.NAME)) or (
        entry.name == "chroma"
    )
