"""An index that follows its files."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from watchfiles import Change, DefaultFilter, watch

from gem_rag.errors import GemError
from gem_rag.rag.index import Index
from gem_rag.rag.sync import SyncReport
from gem_rag.rag.writer import Embedder

_LOOK = 1000  # milliseconds between two looks at whether to stop


class _Filter(DefaultFilter):
    """Changes of documents: not of the index itself, hidden folders or installed packages."""

    def __init__(self, index: Path) -> None:
        super().__init__()
        self._index = index

    def __call__(self, change: Change, path: str) -> bool:
        return not Path(path).is_relative_to(self._index) and super().__call__(change, path)


def follow(
    index: Index,
    paths: Sequence[Path],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embedder: Embedder | None = None,
    stop: threading.Event | None = None,
) -> Iterator[SyncReport | GemError]:
    """Sync an index, and again whenever a file below the paths changes, until it is stopped.

    Args:
        index: The index.
        paths: Files and folders.
        include: As of `Index.sync`.
        exclude: As of `Index.sync`.
        embedder: As of `Index.sync`.
        stop: Ends the watch when it is set; default an interrupt does.

    Yields:
        The first sync's report, and those of others that changed something; or why one failed, in
        which case the next change is waited for.

    Raises:
        InputError: A path is not there in the beginning.
    """

    def sync() -> SyncReport:
        return index.sync(paths, include=include, exclude=exclude, embedder=embedder)

    yield sync()
    changes_of = watch(
        *paths,
        watch_filter=_Filter(index.folder.resolve()),
        stop_event=stop,
        rust_timeout=_LOOK,
        yield_on_timeout=True,
    )
    # The first time whatever it says: files may have changed before the watch began.
    for number, changes in enumerate(changes_of):
        if number and not changes:
            continue
        try:
            report = sync()
        except GemError as error:  # a folder that is gone for now, or another writer
            yield error
        else:
            if report.added or report.changed or report.removed:
                yield report
