"""How often answers have rested on each document of an index, in a small database beside it.

Beside it, because a sync holds the index's own database for as long as it embeds.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

NAME = "asked.db"
_WAIT_SECONDS = 1.0  # for another process's count


class AskedCounts:
    """Counts by source; safe to use from many threads and processes.

    Args:
        folder: The index's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._failed = False

    def add(self, sources: Iterable[str]) -> None:
        """Count documents once more; where that cannot be written, it is said once."""
        rows = [(source,) for source in dict.fromkeys(sources)]
        if self._failed or not rows:
            return
        try:
            with closing(sqlite3.connect(self._path, timeout=_WAIT_SECONDS)) as database, database:
                database.execute("PRAGMA synchronous = OFF")  # a lost count is no loss
                database.execute(
                    "CREATE TABLE IF NOT EXISTS asked (source TEXT PRIMARY KEY, count INTEGER)"
                )
                database.executemany(
                    "INSERT INTO asked VALUES (?, 1) "
                    "ON CONFLICT (source) DO UPDATE SET count = count + 1",
                    rows,
                )
        except sqlite3.Error as error:
            self._failed = True
            warnings.warn(
                f"{self._path} cannot be written ({error}): which documents are asked for most is "
                "not counted",
                stacklevel=3,
            )

    def most(self) -> list[str]:
        """Sources, the most asked first; nothing if there are no counts that can be read."""
        if not self._path.exists():
            return []
        try:
            with closing(sqlite3.connect(self._path, timeout=_WAIT_SECONDS)) as database:
                rows = database.execute("SELECT source FROM asked ORDER BY count DESC, source")
                return [source for (source,) in rows]
        except sqlite3.Error:
            return []
