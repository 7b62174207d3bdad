"""Indexes of formats 1 and 2, whose commits wrote all text and all vectors into files of their own.

They are read until gem-rag 0.3: opening one makes a copy in today's format in a temporary folder,
and the first sync puts it in the old one's place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gem_rag.core.arrays import FloatArray
from gem_rag.documents.document import Chunk, Document
from gem_rag.errors import GemError, InputError
from gem_rag.rag.commit import passage_digest
from gem_rag.rag.format_1 import chunks_of_format_1, file_of_format_1
from gem_rag.rag.manifest import OLD_NAME, Manifest
from gem_rag.rag.vector_files import KnownVectors, row_type


class Entry(NamedTuple):
    """A document and its chunks."""

    document: Document
    chunks: list[Chunk]


def read_entries(folder: Path, manifest: Manifest) -> list[Entry]:
    """The documents of an old index.

    Raises:
        GemError: A file is damaged or missing.
    """
    names = [name for name in manifest.files if name.startswith("documents-")]
    return [entry for name in names for entry in _read(_checked(folder, name, manifest), manifest)]


def read_vectors(folder: Path, manifest: Manifest, entries: list[Entry]) -> KnownVectors:
    """The vectors of an old index by passage.

    Raises:
        InputError: They are in a Chroma database only.
        GemError: A file is damaged or missing.
    """
    names = [name for name in manifest.files if name.startswith("vectors-")]
    chunks = {chunk.id: chunk for entry in entries for chunk in entry.chunks}
    if not names:
        raise InputError(
            f"the index in {folder} has its vectors in a Chroma database of gem-rag 0.1: embed "
            f"again with: gem-rag index --reembed --index {folder}"
        )
    vectors = _load(_checked(folder, names[0], manifest))
    rows = np.zeros(len(chunks), dtype=row_type(manifest.dim))
    rows["passage"] = [passage_digest(chunk.passage) for chunk in chunks.values()]
    rows["vector"] = vectors
    return KnownVectors([rows])


def remove_old_files(folder: Path) -> None:
    """Remove an old index's files, once its successor is committed."""
    for pattern in ("documents-*.jsonl", "vectors-*.faiss", OLD_NAME):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _checked(folder: Path, name: str, manifest: Manifest) -> Path:
    path = folder / name
    if not path.exists():
        raise GemError(f"{path} is missing: restore it, or delete {folder} and index again")
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != manifest.files[name]:
        raise GemError(
            f"{path} is damaged (its checksum is not the manifest's): restore it, or delete "
            f"{folder} and index again"
        )
    return path


def _load(path: Path) -> FloatArray:
    if path.suffix == ".npy":
        vectors: FloatArray = np.load(path)
        return vectors
    import faiss

    index = faiss.read_index(str(path))
    return np.asarray(index.reconstruct_n(0, index.ntotal), dtype=np.float32)


def _read(path: Path, manifest: Manifest) -> Iterator[Entry]:
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            yield _parse(json.loads(line), manifest)


def _parse(record: dict[str, Any], manifest: Manifest) -> Entry:
    spans = record.pop("spans")
    record["places"] = tuple((start, name) for start, name in record.get("places", ()))
    if manifest.format_version == 1:
        document = Document(**record, file=file_of_format_1(record["source"]))
        return Entry(document, list(chunks_of_format_1(document, spans)))
    document = Document(**record)
    text = document.text
    return Entry(
        document,
        [
            Chunk(document.source, title, start, stop, text[start:stop])
            for start, stop, title in spans
        ],
    )
