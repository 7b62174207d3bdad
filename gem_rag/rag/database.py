"""The SQLite database of an index: its documents, its chunks, their words and its manifest.

Every page carries a checksum, which is verified when the page is read. A commit of an index is a
commit of its database; vectors are in files of their own, which the database names.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import apsw.sqlite_extra
from filelock import FileLock, Timeout

from gem_rag.errors import GemError

NAME = "index.db"
_SCHEMA = """
CREATE TABLE manifest (state TEXT NOT NULL);
CREATE TABLE files (
    name TEXT PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL, rows INTEGER NOT NULL,
    live INTEGER NOT NULL
);
CREATE TABLE documents (
    number INTEGER PRIMARY KEY, source TEXT NOT NULL UNIQUE, file TEXT NOT NULL,
    digest TEXT NOT NULL, content BLOB NOT NULL, title TEXT NOT NULL, kind TEXT NOT NULL,
    places TEXT NOT NULL, metadata TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX documents_by_file ON documents (file, source);
CREATE TABLE chunks (
    number INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL, start INTEGER NOT NULL,
    stop INTEGER NOT NULL, title TEXT NOT NULL, text BLOB NOT NULL, passage BLOB NOT NULL
);
CREATE INDEX chunks_by_document ON chunks (document, start);
CREATE INDEX chunks_by_passage ON chunks (passage);
"""
_WORDS = """
CREATE VIRTUAL TABLE words USING fts5 (
    passage, content = '', contentless_delete = 1, columnsize = 1,
    tokenize = "porter unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc'"
);
"""
_CHECKSUM_BYTES = 8  # at the end of a page, what the extension wants
_CACHE = -32_000  # KiB, of a connection that writes
_WAIT = 30_000  # milliseconds for another connection's short lock

Connection = apsw.Connection


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with the process that holds it.

    Raises:
        GemError: Another process holds it.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise GemError(f"another process is writing to {folder}: wait until it is done") from None


class Database:
    """Connections to an index's database; safe to use from many threads.

    Args:
        folder: The index's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self._idle: list[Connection] = []
        self._file: tuple[int, int] | None = None  # that idle connections are to
        self._lock = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one commit, whatever is written meanwhile, or an empty database
        if there is none yet.

        Raises:
            GemError: The database is damaged, or cannot be opened.
        """
        with self._readable_errors():
            connection = self._take()
            try:
                connection.execute("BEGIN")
                yield connection if _has_schema(connection) else _empty()
                connection.execute("COMMIT")
            except BaseException:
                connection.close(True)
                raise
            with self._lock:
                self._idle.append(connection)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that becomes a commit, or leaves everything as it was if the block fails.

        Only for the holder of the write lock.

        Raises:
            GemError: The database is damaged, or the disk is full or fails.
        """
        with self._readable_errors():
            connection = self._open(writes=True)
            try:
                connection.execute("BEGIN IMMEDIATE")
                if not _has_schema(connection):
                    _create_schema(connection)
                try:
                    yield connection
                except OSError as error:
                    raise self._unwritten(error.strerror) from error
                connection.execute("COMMIT")
                # Into the file itself, so that a copy of it is whole; a reader may prevent that.
                connection.pragma("wal_checkpoint(TRUNCATE)")
            finally:
                connection.close(True)

    def close(self) -> None:
        """Close the connections that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close(True)

    def _take(self) -> Connection:
        found = self.path.stat() if self.path.exists() else None
        file = (found.st_dev, found.st_ino) if found else None
        if file != self._file:  # the folder was removed, or another was put in its place
            self.close()
        with self._lock:
            self._file = file
            if self._idle:
                return self._idle.pop()
        return self._open(writes=False) if found else _empty()

    def _open(self, writes: bool) -> Connection:
        _load_checksums()
        if writes or os.access(self.folder, os.W_OK):
            flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if writes else 0)
            connection = Connection(str(self.path), flags=flags)
        else:  # where the files that coordinate readers and a writer cannot be made
            self._check_is_whole()
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            connection = Connection(f"{self.path.as_uri()}?immutable=1", flags=flags)
        connection.set_busy_timeout(_WAIT)
        if writes:
            connection.reserve_bytes(None, _CHECKSUM_BYTES)
            connection.pragma("journal_mode", "wal")
            connection.pragma("cache_size", _CACHE)
        return connection

    def _check_is_whole(self) -> None:
        log = self.path.with_name(f"{NAME}-wal")
        if log.exists() and log.stat().st_size:
            raise GemError(
                f"{self.folder} may not be written, and a commit in {log.name} was not finished: "
                "open the index once where it may be written"
            )

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Turn what SQLite raises into one sentence."""
        try:
            yield
        except (apsw.FullError, apsw.IOError) as error:
            if isinstance(error, apsw.FullError) or _extended_code(error) in _WRITE_ERRORS:
                raise self._unwritten(str(error)) from error
            raise self._damaged(error) from error
        except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
            raise self._damaged(error) from error
        except apsw.BusyError as error:
            raise GemError(f"another process holds {self.path}: wait until it is done") from error
        except (apsw.CantOpenError, apsw.ReadOnlyError) as error:
            raise GemError(
                f"{self.path} cannot be opened ({error}): check that it is there and may be read"
            ) from error

    def _unwritten(self, reason: str | None) -> GemError:
        return GemError(f"could not write {self.folder} ({reason}): the index is as it was before")

    def _damaged(self, error: apsw.Error) -> GemError:
        return GemError(
            f"{self.path} is damaged ({error}): restore it, or delete {self.folder} and index again"
        )


def empty_words(connection: Connection) -> None:
    """Forget all words of chunks.

    The table is made anew: after FTS5's own "delete-all", connections that had read it before may
    read what is not there.
    """
    connection.execute("DROP TABLE words")
    connection.execute(_WORDS)


def _has_schema(connection: Connection) -> bool:
    return bool(connection.pragma("user_version"))


def _create_schema(connection: Connection) -> None:
    connection.execute(_SCHEMA)
    connection.execute(_WORDS)
    connection.pragma("user_version", 1)


def _empty() -> Connection:
    connection = Connection(":memory:")
    _create_schema(connection)
    return connection


def _extended_code(error: apsw.Error) -> int:
    code: int = error.extendedresult  # type: ignore[attr-defined]
    return code


_WRITE_ERRORS = frozenset({
    apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC,
    apsw.SQLITE_IOERR_TRUNCATE, apsw.SQLITE_IOERR_SHMSIZE, apsw.SQLITE_IOERR_SHMOPEN,
    apsw.SQLITE_IOERR_SHMMAP, apsw.SQLITE_IOERR_DELETE,
})  # fmt: skip
_checksums = threading.Lock()


def _load_checksums() -> None:
    """Let SQLite verify pages: once in a process, which is for all of its connections."""
    with _checksums:
        if "cksmvfs" not in apsw.vfs_names() and apsw.sqlite_extra.has("cksumvfs"):
            apsw.sqlite_extra.load(Connection(":memory:"), "cksumvfs")
