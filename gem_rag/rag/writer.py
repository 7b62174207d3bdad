"""A commit in the making: documents in and out, chunks embedded as they come, one transaction."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Protocol

import apsw
import numpy as np

from gem_rag._utils.progress import Advance
from gem_rag.core.arrays import FloatArray, IntArray
from gem_rag.documents.document import Chunk, Document
from gem_rag.documents.splitting import Splitter
from gem_rag.model import Gem
from gem_rag.rag.commit import (
    chunk_numbers,
    content_digest,
    place_of,
    read_document,
    text_digest,
    vector_files,
)
from gem_rag.rag.database import empty_words
from gem_rag.rag.manifest import Manifest
from gem_rag.rag.reading import Reading, embed_readings, make_readings
from gem_rag.rag.stores.store import Store
from gem_rag.rag.vector_files import (
    KnownVectors,
    Rows,
    VectorFile,
    VectorFiles,
    find_in_rows,
    leftover_vectors,
    row_type,
    write_vectors,
)
from gem_rag.rag.words import separate_words

_COLUMNS = "source, title, kind, text, content, file, digest, places, metadata"
_BATCH = 2_048  # chunks that are embedded together
_FILE = 16_384  # rows of a vector file; smaller ones are merged
_SMALL_FILES = 8  # that may be, before they are merged
_SEAL = 60.0  # seconds of embedding that an interruption may cost
_DEAD = 0.5  # of a file's rows, that may be of removed chunks


class Embedder(Protocol):
    """What computes vectors of passages: float32 [n, dim], `shard` of them at a time."""

    shard: int

    def embed(self, readings: Sequence[Reading]) -> FloatArray: ...


class _Local:
    """The model itself."""

    def __init__(self, gem: Gem) -> None:
        self.shard = _BATCH
        self.embed = partial(embed_readings, gem)


class Waiting(NamedTuple):
    """A chunk that needs a vector; its twin, read likewise, has one or waits too."""

    number: int
    digest: bytes
    reading: Reading
    twin: int | None


class Writer:
    """Changes an index's documents within one transaction of its database.

    Vectors are computed in batches, and written to files as there are enough of them. The files of
    a sync that was interrupted are used by the next one, so nothing is embedded twice.

    Args:
        connection: The transaction's.
        folder: The index's folder.
        gem: The model that embeds.
        manifest: Of the commit before, or of a new index.
        store: Of the commit before, with its vectors.
        advance: Told of how many chunks have been embedded.
        embedder: Embeds instead of the model.
        known: Vectors that need not be computed; default those of an interrupted sync.

    Attributes:
        embedded: How many chunks had to be embedded.
        removed: The chunks that have been removed.
        is_done: Whether there is something to commit.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        folder: Path,
        gem: Gem,
        manifest: Manifest,
        store: Store,
        advance: Advance | None = None,
        embedder: Embedder | None = None,
        known: KnownVectors | None = None,
    ) -> None:
        self.embedded = 0
        self.removed: list[int] = []
        self.is_done = False
        self._connection = connection
        self._folder = folder
        self._embedder: Embedder = embedder or _Local(gem)
        self._manifest = manifest
        self._store = store
        self._before = store.vectors
        self._advance = advance or (lambda count, label=None: None)
        self._splitter = Splitter(gem.tokenizer, manifest.chunk_tokens)
        self._documents, self._chunks = manifest.documents, manifest.chunks
        self._waiting: list[Waiting] = []
        self._rows: list[Rows] = []
        self._sealed = time.monotonic()
        self._new = VectorFiles(folder, manifest.dim, [])
        if known is None:
            names = {file.name for file in vector_files(connection)}
            leftover = leftover_vectors(folder, manifest.fingerprint, manifest.dim, names)
            known = KnownVectors(leftover)
        self._known = known

    # -- documents ---------------------------------------------------------------------------

    def put(self, document: Document) -> None:
        """Add a document, or replace the one of its source."""
        self.put_split(document, self._splitter.split(document))

    def put_split(self, document: Document, chunks: Sequence[Chunk]) -> None:
        """As `put`, of a document that has been split."""
        number = self._number(document.source)
        row = (
            document.source, document.title, document.kind, document.text,
            content_digest(document), *place_of(document),
        )  # fmt: skip
        if number is None:
            self._documents += 1
            self._connection.execute(
                f"INSERT INTO documents ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row
            )
            number = self._connection.last_insert_rowid()
        else:
            self._connection.execute(
                f"UPDATE documents SET ({_COLUMNS}) = (?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE number = ?",
                (*row, number),
            )
        self._put_chunks(number, chunks)

    def relocate(self, document: Document) -> None:
        """Note that a document of the same text has another file, other places or metadata."""
        self._connection.execute(
            "UPDATE documents SET (file, digest, places, metadata) = (?, ?, ?, ?) WHERE source = ?",
            (*place_of(document), document.source),
        )

    def remove(self, source: str) -> None:
        """Remove a document that there is."""
        number = self._number(source)
        rows = self._connection.execute("SELECT number FROM chunks WHERE document = ?", (number,))
        self._remove_chunks([chunk for (chunk,) in rows])
        self._connection.execute("DELETE FROM documents WHERE number = ?", (number,))
        self._documents -= 1

    def split_again(self) -> None:
        """Split and embed all documents anew; what the index had of their chunks is forgotten."""
        for table in ("chunks", "files"):
            self._connection.execute(f"DELETE FROM {table}")
        empty_words(self._connection)
        self._chunks = 0
        rows = self._connection.execute("SELECT number FROM documents ORDER BY number")
        numbers = [number for (number,) in rows]
        self._documents = len(numbers)
        for number in numbers:
            document = read_document(self._connection, number)
            self._put_chunks(number, self._splitter.split(document))

    def commit(self, roots: dict[str, str]) -> None:
        """Write what is left, and the manifest; the transaction's end makes it a commit."""
        self._embed()
        self._seal()
        self._count_removed(np.array(self.removed, dtype=np.int64))
        self._tidy_files()
        files = vector_files(self._connection)
        vectors = VectorFiles(self._folder, self._manifest.dim, files, self._new)
        own = self._store.prepare(vectors, self._chunks)
        names = [*(file.name for file in files), *own]
        dataclasses.replace(
            self._manifest,
            generation=self._manifest.generation + 1,
            documents=self._documents,
            chunks=self._chunks,
            roots=roots,
            files={name: Path(name).stem.rpartition("-")[2] for name in names},
        ).write(self._connection)
        self.is_done = True

    def save_progress(self) -> None:
        """Write the vectors that there are, for the next sync to find."""
        self._seal()

    # -- chunks ------------------------------------------------------------------------------

    def _number(self, source: str) -> int | None:
        number: int | None = self._connection.execute(
            "SELECT number FROM documents WHERE source = ?", (source,)
        ).get
        return number

    def _put_chunks(self, document: int, chunks: Sequence[Chunk]) -> None:
        """Make these a document's chunks; those that it had before, read likewise, keep their
        vectors."""
        before: dict[bytes, list[int]] = defaultdict(list)
        rows = self._connection.execute(
            "SELECT passage, number FROM chunks WHERE document = ? ORDER BY start DESC", (document,)
        )
        for digest, number in rows:
            before[digest].append(number)
        for chunk, reading in zip(chunks, self._read(chunks), strict=True):
            if kept := before[reading.digest]:
                self._connection.execute(
                    "UPDATE chunks SET (start, stop, title, text) = (?, ?, ?, ?) WHERE number = ?",
                    (chunk.start, chunk.stop, chunk.title, text_digest(chunk.text), kept.pop()),
                )
            else:
                self._add_chunk(document, chunk, reading)
        self._remove_chunks([number for numbers in before.values() for number in numbers])
        if len(self._waiting) >= self._embedder.shard:
            self._embed()

    def _read(self, chunks: Sequence[Chunk]) -> list[Reading]:
        """What is read to embed all of a document's chunks."""
        passages = [chunk.passage for chunk in chunks]
        return make_readings(passages, self._splitter.count_tokens, self._manifest.context_tokens)

    def _add_chunk(self, document: int, chunk: Chunk, reading: Reading) -> None:
        digest = reading.digest
        twin = self._connection.execute(
            "SELECT number FROM chunks WHERE passage = ? ORDER BY number LIMIT 1", (digest,)
        ).get
        self._connection.execute(
            "INSERT INTO chunks (document, start, stop, title, text, passage) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (document, chunk.start, chunk.stop, chunk.title, text_digest(chunk.text), digest),
        )
        number = self._connection.last_insert_rowid()
        self._connection.execute(
            "INSERT INTO words (rowid, passage) VALUES (?, ?)",
            (number, separate_words(chunk.passage)),
        )
        self._waiting.append(Waiting(number, digest, reading, twin))
        self._chunks += 1

    def _remove_chunks(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._connection.execute("DELETE FROM chunks WHERE number = ?", (number,))
            self._connection.execute("DELETE FROM words WHERE rowid = ?", (number,))
        self._chunks -= len(numbers)
        self.removed += numbers

    # -- vectors -----------------------------------------------------------------------------

    def _embed(self) -> None:
        """Find or compute the vectors of the chunks that wait."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = np.zeros(len(waiting), dtype=row_type(self._manifest.dim))
        rows["chunk"] = [one.number for one in waiting]
        rows["passage"] = [one.digest for one in waiting]
        known = self._find_known(waiting)
        first: dict[bytes, int] = {}  # of equal passages in the batch, only one is embedded
        for place, one in enumerate(waiting):
            if place not in known:
                first.setdefault(one.digest, place)
        new = list(first.values())
        if new:
            computed = self._embedder.embed([waiting[place].reading for place in new])
            known |= dict(zip(new, computed, strict=True))
            self.embedded += len(new)
        for place, one in enumerate(waiting):
            rows["vector"][place] = known[place if place in known else first[one.digest]]
        self._advance(len(waiting))
        self._store.add(rows["chunk"], np.ascontiguousarray(rows["vector"]))
        self._rows.append(rows)
        count = sum(map(len, self._rows))
        if count >= _FILE or time.monotonic() - self._sealed > _SEAL:
            self._seal()

    def _find_known(self, waiting: Sequence[Waiting]) -> dict[int, FloatArray]:
        """Vectors of passages that are in the index elsewhere, by place in the batch."""
        known: dict[int, FloatArray] = {}
        twins: dict[int, int] = {}  # place -> a chunk of the same passage
        for place, one in enumerate(waiting):
            if (vector := self._known.find(one.digest)) is not None:
                known[place] = vector
            elif one.twin is not None:
                twins[place] = one.twin
        for vectors in (self._before, self._new):
            places = [place for place in twins if place not in known]
            found, is_there = vectors.find([twins[place] for place in places])
            known |= {places[i]: found[i] for i in np.flatnonzero(is_there)}
        for rows in self._rows:  # not in a file yet
            places = [place for place in twins if place not in known]
            numbers = np.array([twins[place] for place in places], dtype=np.int64)
            found, is_there = find_in_rows(rows, numbers)
            known |= {places[i]: found[i] for i in np.flatnonzero(is_there)}
        return known

    def _seal(self) -> None:
        """Write the vectors that there are to a file."""
        rows, self._rows = self._rows, []
        self._sealed = time.monotonic()
        if rows:
            self._record(np.concatenate(rows))

    def _record(self, rows: Rows) -> None:
        file = write_vectors(self._folder, self._manifest.fingerprint, rows)
        files = sorted([*self._new.files, file], key=attrgetter("first"))
        self._new = VectorFiles(self._folder, self._manifest.dim, files, self._new)
        self._connection.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?)", (*file, file.rows))

    # -- files -------------------------------------------------------------------------------

    def _count_removed(self, removed: IntArray) -> None:
        """Note how many chunks of each file are left."""
        for name, first, last in list(
            self._connection.execute("SELECT name, first, last FROM files")
        ):
            count = int(np.count_nonzero((removed >= first) & (removed <= last)))
            if count:
                self._connection.execute(
                    "UPDATE files SET live = live - ? WHERE name = ?", (count, name)
                )

    def _tidy_files(self) -> None:
        """Write files that are small, or mostly of removed chunks, anew."""
        rows = self._connection.execute(
            "SELECT name, first, last, rows, live FROM files ORDER BY first"
        )
        live = {VectorFile(*row[:4]): row[4] for row in rows}
        vectors = VectorFiles(self._folder, self._manifest.dim, list(live), self._before)
        for is_small, run in itertools.groupby(list(live), lambda file: file.rows < _FILE):
            if is_small and len(files := list(run)) > _SMALL_FILES:
                self._rewrite(files, vectors)
                live = {file: count for file, count in live.items() if file not in files}
        for file, count in live.items():
            if count < (1 - _DEAD) * file.rows:
                self._rewrite([file], vectors)

    def _rewrite(self, files: Sequence[VectorFile], vectors: VectorFiles) -> None:
        """Make one file of these, without the rows of removed chunks."""
        rows = np.concatenate([vectors.rows(file) for file in files])
        present = chunk_numbers(self._connection, files[0].first, files[-1].last)
        live = np.isin(rows["chunk"], present)
        for file in files:
            self._connection.execute("DELETE FROM files WHERE name = ?", (file.name,))
        if live.any():
            self._record(rows[live])
