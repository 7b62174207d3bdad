"""What an index has on disk: transactions that read a commit, and those that make the next one."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import apsw

from gem_rag._utils.progress import Advance
from gem_rag.errors import GemError
from gem_rag.model import Gem
from gem_rag.rag.commit import Commit, open_store, vector_files
from gem_rag.rag.database import Database, write_lock
from gem_rag.rag.manifest import FORMAT_VERSION, Manifest
from gem_rag.rag.old_formats import read_entries, read_vectors, remove_old_files
from gem_rag.rag.stores.store import Store
from gem_rag.rag.vector_files import VectorFiles, remove_unneeded
from gem_rag.rag.writer import Embedder, Writer

_ATTEMPTS = 3
T = TypeVar("T")
W = TypeVar("W", bound=Writer)


class Storage:
    """The commits of an index; safe to use from many threads.

    Args:
        folder: The index's folder.
        manifest: Of the index, or of the one that is to be made.
        gem: The model that embeds.
    """

    def __init__(self, folder: Path, manifest: Manifest, gem: Gem) -> None:
        self.folder = folder
        self.gem = gem
        self._new = manifest
        self._loaded: tuple[Manifest, Store] | None = None
        self._loading = threading.Lock()
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        is_old = manifest.format_version < FORMAT_VERSION
        self._database = self._copy_old_format(manifest) if is_old else Database(folder)

    # -- reading -----------------------------------------------------------------------------

    def read(self, do: Callable[[Commit], T]) -> T:
        """What a function makes of the newest commit, all of which it sees at one moment.

        Raises:
            GemError: The index is damaged, or was embedded by another model since.
        """
        for attempt in range(_ATTEMPTS):
            is_last = attempt == _ATTEMPTS - 1
            generation = -1
            try:
                with self._reading() as commit:
                    generation = commit.manifest.generation
                    return do(commit)
            except FileNotFoundError as error:
                # Another process may have committed since, and removed what is not needed now.
                if is_last:
                    raise GemError(
                        f"{error.filename or error.args[0]} is missing: restore it, or delete "
                        f"{self.folder} and index again"
                    ) from None
            except GemError:
                if is_last or generation == self._generation():
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _generation(self) -> int:
        with self._reading() as commit:
            return commit.manifest.generation

    @contextmanager
    def _reading(self) -> Iterator[Commit]:
        with self._database.reading() as connection:
            yield self._commit_of(connection)

    def _commit_of(self, connection: apsw.Connection) -> Commit:
        manifest = Manifest.of(connection, self.folder) or self._new
        if manifest.fingerprint != self._new.fingerprint:
            raise GemError(
                f"the index in {self.folder} has been re-embedded by model {manifest.model!r} "
                "since: open it with that model"
            )
        with self._loading:
            if self._loaded is None or self._loaded[0] != manifest:
                store = self._load(connection, manifest)
                self._loaded = (manifest, store)
            return Commit(connection, manifest, self._loaded[1])

    def _load(self, connection: apsw.Connection, manifest: Manifest) -> Store:
        earlier = self._loaded[1] if self._loaded else None
        folder = self._database.folder
        vectors = VectorFiles(
            folder, manifest.dim, vector_files(connection), earlier.vectors if earlier else None
        )
        store = open_store(folder, manifest, vectors)
        if earlier is not None:
            store.keep_open(earlier)
        return store

    # -- writing -----------------------------------------------------------------------------

    @contextmanager
    def writing(
        self, kind: type[W], embedder: Embedder | None = None
    ) -> Iterator[tuple[Commit, W]]:
        """The newest commit, and the writer of the next one.

        If the block fails, the index is as it was, and vectors that were computed are kept for the
        next time.

        Args:
            kind: Of writer.
            embedder: Embeds instead of the model.

        Raises:
            GemError: Another process is writing, or the disk is full or fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_lock(self.folder):
            if self._copy is not None:
                self._replace_old_files()
            with self._database.writing() as connection:
                commit = self._commit_of(connection)
                with suppress(GemError):  # what is damaged, the block finds out
                    commit.store.clean([], commit.find_live)
                writer = kind(
                    connection, self.folder, self.gem, commit.manifest, commit.store,
                    embedder=embedder,
                )  # fmt: skip
                with _keeping_vectors(writer):
                    yield commit, writer
            if writer.is_done:
                self._tidy(writer)

    def reembed(self, old: Manifest, advance: Advance | None = None) -> None:
        """Split and embed all documents again, and make that the next commit.

        Args:
            old: The manifest of what is there; `manifest` is of what is to be.
            advance: Told of how many chunks have been embedded.

        Raises:
            GemError: As `writing`.
        """
        with write_lock(self.folder):
            with self._database.writing() as connection:
                store = _empty_store(self.folder, self._new)
                store.reset()
                writer = Writer(connection, self.folder, self.gem, self._new, store, advance)
                with _keeping_vectors(writer):
                    if old.format_version < FORMAT_VERSION:
                        for entry in read_entries(self.folder, old):
                            writer.put(entry.document)
                    else:
                        writer.split_again()
                    writer.commit(old.roots)
            self._tidy(writer)

    def _tidy(self, writer: Writer) -> None:
        """Remove what no commit needs any more."""
        remove_old_files(self.folder)
        with self._reading() as commit:
            commit.store.clean(writer.removed, commit.find_live)
            for path in self.folder.glob("vectors-*.npy"):
                if path.name not in commit.manifest.files:
                    remove_unneeded(path)

    # -- older formats -----------------------------------------------------------------------

    def _copy_old_format(self, old: Manifest) -> Database:
        """Today's format of an older index, in a temporary folder."""
        self._copy = tempfile.TemporaryDirectory(prefix="gem-rag-index-")
        return self._convert(old, Path(self._copy.name))

    def _replace_old_files(self) -> None:
        """Put today's format of an older index in its place."""
        manifest = Manifest.read_existing(self.folder)
        if manifest.format_version < FORMAT_VERSION:
            self._convert(manifest, self.folder)
            remove_old_files(self.folder)
        self._copy, self._loaded, self._database = None, None, Database(self.folder)

    def _convert(self, old: Manifest, target: Path) -> Database:
        entries = read_entries(self.folder, old)
        known = read_vectors(self.folder, old, entries)
        manifest = dataclasses.replace(
            old, documents=0, chunks=0, files={}, format_version=FORMAT_VERSION
        )
        database = Database(target)
        with database.writing() as connection:
            store = _empty_store(target, manifest)
            writer = Writer(connection, target, self.gem, manifest, store, known=known)
            for entry in entries:
                writer.put_split(entry.document, entry.chunks)
            writer.commit(old.roots)
        return database


def _empty_store(folder: Path, manifest: Manifest) -> Store:
    return open_store(folder, manifest, VectorFiles(folder, manifest.dim, []))


@contextmanager
def _keeping_vectors(writer: Writer) -> Iterator[None]:
    """Keep what was computed if the block fails, or is interrupted."""
    try:
        yield
    except BaseException:
        with suppress(OSError, GemError):
            writer.save_progress()
        raise
