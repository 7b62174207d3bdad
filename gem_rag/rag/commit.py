"""What a commit of an index holds: read from its files, and the formats of these files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from gem_rag.documents.document import Chunk, Document
from gem_rag.errors import GemError, InputError
from gem_rag.rag.format_1 import chunks_of_format_1, file_of_format_1
from gem_rag.rag.manifest import Manifest
from gem_rag.rag.stores.store import Store
from gem_rag.rag.words import WordIndex

_LOAD_ATTEMPTS = 3


class Entry(NamedTuple):
    """A document and its chunks."""

    document: Document
    chunks: list[Chunk]


@dataclass(frozen=True)
class Commit:
    """One commit in memory; never changed, so searches continue while a sync makes the next."""

    manifest: Manifest
    documents: dict[str, Entry]
    chunks: dict[str, Chunk]
    store: Store

    @cached_property
    def words(self) -> WordIndex:
        """The chunks' words, with their titles, in the order of `chunks`."""
        return WordIndex([chunk.passage for chunk in self.chunks.values()])


def load_commit(folder: Path, new: Manifest) -> Commit:
    """The commit on disk; `new` and nothing else if there is none."""
    for attempt in range(_LOAD_ATTEMPTS):
        manifest = Manifest.read(folder) or new
        if manifest.fingerprint != new.fingerprint:
            raise GemError(
                f"the index in {folder} has been re-embedded by model {manifest.model!r} since: "
                "open it with that model"
            )
        try:
            documents = read_documents(folder, manifest)
            chunks = chunks_by_id(documents)
            store = open_store(folder, manifest)
            store.load(list(chunks), manifest.generation)
        except FileNotFoundError as error:
            # Another process may have committed since the manifest was read.
            if attempt == _LOAD_ATTEMPTS - 1:
                raise GemError(
                    f"{error.args[0]} is missing: restore it, or delete {folder} and index again"
                ) from None
        else:
            return Commit(manifest, documents, chunks, store)
    raise AssertionError("the last attempt returns or raises")


def read_documents(folder: Path, manifest: Manifest, vectors: bool = True) -> dict[str, Entry]:
    """The documents of a commit. Without `vectors`, only what they are read from is verified."""
    names = [name for name in manifest.files if name.startswith("documents-")]
    checked = manifest.files if vectors else {name: manifest.files[name] for name in names}
    dataclasses.replace(manifest, files=checked).verify(folder)
    entries: dict[str, Entry] = {}
    for name in names:
        with (folder / name).open(encoding="utf-8") as handle:
            for line in handle:
                entry = _parse_record(line, manifest)
                entries[entry.document.source] = entry
    return entries


def format_record(entry: Entry) -> bytes:
    """A line of documents-N.jsonl: the document, and [start, stop, title] of each chunk."""
    spans = [[chunk.start, chunk.stop, chunk.title] for chunk in entry.chunks]
    record = {**dataclasses.asdict(entry.document), "spans": spans}
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _parse_record(line: str, manifest: Manifest) -> Entry:
    record: dict[str, Any] = json.loads(line)
    spans = record.pop("spans")
    record["places"] = tuple((start, name) for start, name in record.get("places", ()))
    if manifest.format_version == 1:
        document = Document(**record, file=file_of_format_1(record["source"]))
        return Entry(document, list(chunks_of_format_1(document, spans)))
    document = Document(**record)
    return Entry(
        document,
        [
            Chunk(document.source, title, start, stop, document.text[start:stop])
            for start, stop, title in spans
        ],
    )


def chunks_by_id(documents: dict[str, Entry]) -> dict[str, Chunk]:
    """All chunks by id, in order of documents and position."""
    return {chunk.id: chunk for entry in documents.values() for chunk in entry.chunks}


def open_store(folder: Path, manifest: Manifest) -> Store:
    """The store that an index's vectors are in; raises InputError if it is not installed."""
    if manifest.store == "chroma":
        try:
            from gem_rag.rag.stores.chroma_store import ChromaStore
        except ImportError:
            raise InputError(
                "the store 'chroma' needs chromadb: pip install 'gem-rag[chroma]', or use "
                "store='faiss'"
            ) from None
        return ChromaStore(folder, manifest.dim, manifest.fingerprint)
    from gem_rag.rag.stores.faiss_store import FaissStore

    return FaissStore(folder, manifest.dim, manifest.fingerprint)


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with the process that holds it."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise GemError(f"another process is writing to {folder}: wait until it is done") from None
