"""Progress bars, on a terminal or in a notebook, or none.

Knows nothing about what is being done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Advance(Protocol):
    """To be called with how many more are done, and with a new label if there is one."""

    def __call__(self, count: int, label: str | None = None) -> None: ...


@contextmanager
def progress_bar(label: str, total: int, shown: bool) -> Iterator[Advance]:
    """Draws on stderr, and only if `shown`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(label, total=total)

        def advance(count: int, label: str | None = None) -> None:
            progress.update(task, advance=count, description=label)

        yield advance
