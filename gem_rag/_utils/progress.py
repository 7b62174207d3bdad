"""Progress bars on a terminal or in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """Advance a progress bar by `count`, and change its label if one is given."""

    def __call__(self, count: int, label: str | None = None) -> None: ...


@contextmanager
def progress_bar(label: str, total: int, shown: bool) -> Iterator[Advance]:
    """Draw a progress bar on stderr, or in a notebook below the cell.

    Args:
        label: What is being done.
        total: How many steps there are.
        shown: Whether anything is drawn at all.

    Yields:
        The function that advances the bar.
    """
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


def told(advance: Advance, total: int, listener: Callable[[int, int], None] | None) -> Advance:
    """`advance`, which also tells a listener how many of all steps have been made."""
    if listener is None:
        return advance
    done = 0

    def advance_and_tell(count: int, label: str | None = None) -> None:
        nonlocal done
        done += count
        advance(count, label)
        listener(done, total)

    return advance_and_tell


def silence_libraries() -> None:
    """Switch off the progress bars and notices of transformers; gem-rag draws its own."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _console() -> Console:
    if not Console().is_jupyter:
        return Console(stderr=True)
    # Live updates in a notebook need widgets; without them one line remains at the end.
    return Console(force_jupyter=find_spec("ipywidgets") is not None)
