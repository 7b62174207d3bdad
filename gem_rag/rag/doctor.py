"""Whether an index is whole, and its repair as far as its own texts allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apsw
import numpy as np

from gem_rag.documents.document import Chunk
from gem_rag.errors import GemError
from gem_rag.rag.commit import Commit, chunk_numbers, read_document
from gem_rag.rag.database import empty_words
from gem_rag.rag.storage import Storage
from gem_rag.rag.vector_files import VectorFile
from gem_rag.rag.words import separate_words
from gem_rag.rag.writer import Waiting, Writer


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with an index.

    Attributes:
        what: What is wrong, in one sentence.
        is_repaired: Whether it has been put right.
    """

    what: str
    is_repaired: bool = False


def examine(storage: Storage, *, repair: bool = False) -> list[Finding]:
    """Read all of an index, and find what is wrong with it.

    Args:
        storage: The index's.
        repair: Whether to put right what can be: vectors, the words' index, counts, and files that
            no commit needs. Texts are not made again: restore a damaged database from a copy.

    Returns:
        What is wrong, or was.

    Raises:
        GemError: The database is damaged; or, to repair, another process is writing.
    """
    found = storage.read(lambda commit: list(_find(commit)))
    if not repair or not found:
        return [Finding(what) for what in found]
    for _ in range(2):  # a store can be made again once the vectors are whole
        with storage.writing(_Repairer) as (commit, repairer):
            repairer.repair(commit)
    left = storage.read(lambda commit: list(_find(commit)))
    return [Finding(what, is_repaired=what not in left) for what in found]


def _find(commit: Commit) -> Iterator[str]:
    connection, folder = commit.connection, commit.vectors.folder
    for (said,) in connection.execute("PRAGMA integrity_check"):
        if said != "ok":
            raise GemError(
                f"the database of the index in {folder} is damaged ({said}): restore it from a "
                "copy, or delete the index and make it again"
            )
    if not _words_are_whole(connection):
        yield "the index of words does not match the chunks"
    for file in commit.vectors.files:
        if (reason := _damage_of(commit, file)) is not None:
            yield reason
    yield from _find_in_store(commit)
    for table in ("documents", "chunks"):
        count, said = _count(commit, table), getattr(commit.manifest, table)
        if count != said:
            yield f"the manifest says {said} {table}, and there are {count}"
    for path in sorted(folder.glob("vectors-*.npy")):
        if path.name not in commit.manifest.files:
            yield f"{path.name} is left over from an interrupted sync"


def _count(commit: Commit, table: str) -> int:
    return int(commit.connection.execute(f"SELECT count(*) FROM {table}").get)


def _words_are_whole(connection: apsw.Connection) -> bool:
    """Whether every chunk is in the index of words, and nothing else."""
    query = "SELECT count(*) FROM {} LEFT JOIN {} ON {} WHERE {} IS NULL"
    ids = "words_docsize.id = chunks.number"
    lost = query.format("chunks", "words_docsize", ids, "words_docsize.id")
    extra = query.format("words_docsize", "chunks", ids, "chunks.number")
    return not any(count for sql in (lost, extra) for (count,) in connection.execute(sql))


def _damage_of(commit: Commit, file: VectorFile) -> str | None:
    """What is wrong with a file of vectors."""
    try:
        rows = commit.vectors.rows(file)
    except FileNotFoundError:
        return f"{file.name} is missing"
    except GemError:
        return f"{file.name} is damaged"
    chunks = chunk_numbers(commit.connection, file.first, file.last)
    lost = np.setdiff1d(chunks, rows["chunk"])
    return f"{file.name} lacks the vectors of {len(lost)} chunks" if len(lost) else None


def _find_in_store(commit: Commit) -> Iterator[str]:
    if not commit.manifest.chunks:
        return
    query = np.zeros((1, commit.manifest.dim), dtype=np.float32)
    query[0, 0] = 1
    own = {file.name for file in commit.vectors.files}  # are looked at by themselves
    try:
        commit.store.search(query, 1)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        if name not in own:
            yield f"{name} is missing"
    except GemError as error:
        if not any(name in str(error) for name in own):
            yield str(error)


class _Repairer(Writer):
    """Makes again what texts and vectors allow."""

    def repair(self, commit: Commit) -> None:
        """Make the next commit, which is whole."""
        if not _words_are_whole(commit.connection):
            self._write_words_again()
        damaged = [file for file in commit.vectors.files if _damage_of(commit, file)]
        for file in damaged:
            self._embed_again(file)
        if not damaged and list(_find_in_store(commit)):
            self._fill_store_again(commit)
        self._documents = _count(commit, "documents")
        self._chunks = _count(commit, "chunks")
        self.commit(commit.manifest.roots)

    def _write_words_again(self) -> None:
        empty_words(self._connection)
        documents = self._connection.execute("SELECT number FROM documents ORDER BY number")
        for (document,) in list(documents):
            for number, _, chunk in self._read_chunks(document):
                self._connection.execute(
                    "INSERT INTO words (rowid, passage) VALUES (?, ?)",
                    (number, separate_words(chunk.passage)),
                )

    def _embed_again(self, file: VectorFile) -> None:
        """Put another file in a file's place."""
        self._connection.execute("DELETE FROM files WHERE name = ?", (file.name,))
        chunks = self._connection.execute(
            "SELECT DISTINCT document FROM chunks WHERE number BETWEEN ? AND ?",
            (file.first, file.last),
        )
        for (document,) in list(chunks):
            rows = list(self._read_chunks(document))
            for (number, digest, _), reading in zip(
                rows, self._read([chunk for _, _, chunk in rows]), strict=True
            ):
                if file.first <= number <= file.last:
                    self._waiting.append(Waiting(number, digest, reading, None))
        self._embed()
        self._seal()

    def _fill_store_again(self, commit: Commit) -> None:
        self._store.reset()
        self._store.files = []
        for chunks, vectors in commit.vectors.blocks():
            there = chunk_numbers(self._connection, int(chunks[0]), int(chunks[-1]))
            live = np.isin(chunks, there)
            self._store.add(chunks[live], vectors[live])

    def _read_chunks(self, document: int) -> Iterator[tuple[int, bytes, Chunk]]:
        """(number, digest, chunk) of a document's chunks, in order."""
        rows = self._connection.execute(
            "SELECT number, passage, title, start, stop FROM chunks WHERE document = ? "
            "ORDER BY start", (document,),
        )  # fmt: skip
        text = read_document(self._connection, document).text
        for number, digest, title, start, stop in list(rows):
            yield number, digest, Chunk("", title, start, stop, text[start:stop])
