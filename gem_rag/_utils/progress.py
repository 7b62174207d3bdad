"""Progress bars, on a terminal or in a notebook, or none.

Knows nothing about what is being done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
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
    """Draws only if `shown`: on stderr, or in a notebook below the cell."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(), disable=not shown) as progress:
        task = progress.add_task(label, total=total)

        def advance(count: int, label: str | None = None) -> None:
            progress.update(task, advance=count, description=label)

        yield advance


def quiet() -> None:
    """Leave progress and warnings to us: transformers draws bars of its own."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _console() -> Console:
    if not Console().is_jupyter:
        return Console(stderr=True)
    # What moves in a notebook needs widgets; without them one line stays when all is done.
    return Console(force_jupyter=find_spec("ipywidgets") is not None)
