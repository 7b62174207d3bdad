"""One commit of an index, as a transaction of its database sees it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from gem_rag.documents.document import Chunk, Document
from gem_rag.errors import InputError
from gem_rag.rag.citations import Citation
from gem_rag.rag.hits import Hit
from gem_rag.rag.manifest import Manifest
from gem_rag.rag.stores.store import Store
from gem_rag.rag.vector_files import PASSAGE_BYTES, VectorFile, VectorFiles
from gem_rag.rag.words import match_any, question_words, rarity

_DOCUMENT = "source, text, title, kind, digest, file, places, metadata"
_BATCH = 10_000  # parameters of a statement


class Place(NamedTuple):
    """Where a chunk is.

    Attributes:
        document: Its document's number.
        source: Its document's source.
        file: Its document's file.
        start: Its first character.
        stop: The character after its last one.
        title: Its title.
        text: Digest of its text.
        metadata: Its document's metadata, in JSON.
    """

    document: int
    source: str
    file: str
    start: int
    stop: int
    title: str
    text: bytes
    metadata: str


class Identity(NamedTuple):
    """What tells whether a document has changed: its content, and where it is."""

    content: bytes
    place: tuple[str, str, str, str]


@dataclass(frozen=True)
class Commit:
    """What a transaction sees.

    Attributes:
        connection: The transaction's.
        manifest: The commit's manifest.
        store: Finds its nearest vectors, and has them all.
    """

    connection: apsw.Connection
    manifest: Manifest
    store: Store
    _read: dict[int, Document] = field(default_factory=dict)  # by number, for hits of one document

    @property
    def vectors(self) -> VectorFiles:
        """The commit's vectors."""
        return self.store.vectors

    def sources(self) -> list[str]:
        """Sources of all documents, sorted."""
        rows = self.connection.execute("SELECT source FROM documents ORDER BY source")
        return [source for (source,) in rows]

    def document(self, source: str) -> Document | None:
        """A document by its source."""
        rows = self.connection.execute(
            f"SELECT {_DOCUMENT} FROM documents WHERE source = ?", (source,)
        )
        return next(map(_document_of, rows), None)

    def passages(self, source: str) -> list[str]:
        """The passages of a document's chunks, in order."""
        document = self.document(source)
        if document is None:
            return []
        rows = self.connection.execute(
            "SELECT start, stop, chunks.title FROM chunks "
            "JOIN documents ON documents.number = document WHERE source = ? ORDER BY start",
            (source,),
        )
        return [
            Chunk(source, title, start, stop, document.text[start:stop]).passage
            for start, stop, title in rows
        ]

    def identity(self, source: str) -> Identity | None:
        """What tells whether a document has changed; None if the index has none of that source."""
        rows = self.connection.execute(
            "SELECT content, file, digest, places, metadata FROM documents WHERE source = ?",
            (source,),
        )
        return next((Identity(content, tuple(place)) for content, *place in rows), None)

    def files(self) -> Iterator[tuple[str, str]]:
        """(source, file) of all documents; of those made in Python the file is empty."""
        yield from self.connection.execute("SELECT source, file FROM documents ORDER BY file")

    def metadata(self) -> Iterator[tuple[str, str]]:
        """(source, metadata in JSON) of all documents."""
        yield from self.connection.execute("SELECT source, metadata FROM documents ORDER BY source")

    def find_live(self, chunks: Sequence[int]) -> set[int]:
        """Which of some chunks there are."""
        return set(self.places(chunks))

    def places(self, chunks: Sequence[int]) -> dict[int, Place]:
        """Where chunks are, in order; those that have been removed are left out."""
        found: dict[int, Place] = {}
        for start in range(0, len(chunks), _BATCH):
            batch = chunks[start : start + _BATCH]
            rows = self.connection.execute(
                "SELECT chunks.number, document, source, file, start, stop, chunks.title, "
                "chunks.text, metadata "
                "FROM chunks JOIN documents ON documents.number = document "
                f"WHERE chunks.number IN ({','.join('?' * len(batch))})",
                tuple(batch),
            )
            found |= {row[0]: Place(*row[1:]) for row in rows}
        return {chunk: found[chunk] for chunk in chunks if chunk in found}

    def hit(self, place: Place, score: float) -> Hit:
        """A hit, with its place in the document's file."""
        if place.document not in self._read:
            self._read[place.document] = read_document(self.connection, place.document)
        document = self._read[place.document]
        text = document.text[place.start : place.stop]
        chunk = Chunk(place.source, place.title, place.start, place.stop, text)
        return Hit(chunk, score, document.place(place.start), document.metadata)

    def locate(self, citations: Sequence[Citation]) -> list[Citation]:
        """Citations with their places in the documents' files, but for those of documents that a
        sync has taken away meanwhile."""
        located = []
        for citation in citations:
            document = self.document(citation.source)
            place = document.place(citation.span[0]) if document else ""
            located.append(dataclasses.replace(citation, place=place))
        return located

    def search_words(self, question: str, depth: int) -> list[tuple[int, float]]:
        """Chunks that share words with a question, best first by BM25.

        Scores are shares of what a chunk of average length has that holds each word once, 1 at
        most: near 1 where a chunk has all of a question's words, and far less where the question
        is in other words than the documents.
        """
        words = question_words(question)
        if not words:
            return []
        whole = sum(self._rarity(word) for word in words)
        rows = self.connection.execute(
            "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?",
            (match_any(words), depth),
        )
        return [(chunk, min(score / whole, 1.0)) for chunk, score in rows]

    def _rarity(self, word: str) -> float:
        query = "SELECT count(*) FROM words WHERE words MATCH ?"
        [(holding,)] = self.connection.execute(query, (match_any([word]),))
        return rarity(max(len(self.vectors), holding), holding)


def read_document(connection: apsw.Connection, number: int) -> Document:
    """A document by its number."""
    rows = connection.execute(f"SELECT {_DOCUMENT} FROM documents WHERE number = ?", (number,))
    return next(map(_document_of, rows))


def vector_files(connection: apsw.Connection) -> list[VectorFile]:
    """The vector files of the commit that a transaction sees."""
    rows = connection.execute("SELECT name, first, last, rows FROM files ORDER BY first")
    return [VectorFile(*row) for row in rows]


def open_store(folder: Path, manifest: Manifest, vectors: VectorFiles) -> Store:
    """The store that finds a commit's vectors; raises InputError if it is not installed."""
    files = [name for name in manifest.files if name.startswith("nearest-")]
    arguments: tuple[Any, ...] = (folder, manifest.fingerprint, vectors, manifest.chunks, files)
    if manifest.store == "chroma":
        try:
            from gem_rag.rag.stores.chroma_store import ChromaStore
        except ImportError:
            raise InputError(
                "the store 'chroma' needs chromadb: pip install 'gem-rag[chroma]', or use "
                "store='faiss'"
            ) from None
        return ChromaStore(*arguments)
    from gem_rag.rag.stores.faiss_store import FaissStore

    return FaissStore(*arguments)


def chunk_numbers(connection: apsw.Connection, first: int, last: int) -> list[int]:
    """The chunks that there are from one number to another."""
    rows = connection.execute(
        "SELECT number FROM chunks WHERE number BETWEEN ? AND ?", (first, last)
    )
    return [number for (number,) in rows]


def passage_digest(passage: str) -> bytes:
    """Identifies what is embedded of a chunk."""
    return _digest(passage, PASSAGE_BYTES)


def text_digest(text: str) -> bytes:
    """Identifies a chunk's text."""
    return _digest(text, 8)


def content_digest(document: Document) -> bytes:
    """Identifies what makes two documents of a source equal."""
    return _digest(json.dumps([document.title, document.kind, document.text]), PASSAGE_BYTES)


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def place_of(document: Document) -> tuple[str, str, str, str]:
    """A document's file, its digest, places in it, and metadata, as in its row."""
    places = json.dumps(document.places, ensure_ascii=False)
    metadata = json.dumps(dict(document.metadata), ensure_ascii=False)
    return document.file, document.digest, places, metadata


def _document_of(row: tuple[Any, ...]) -> Document:
    source, text, title, kind, digest, file, places, metadata = row
    parsed = tuple((start, name) for start, name in json.loads(places))
    return Document(source, text, title, kind, digest, file, parsed, json.loads(metadata))
