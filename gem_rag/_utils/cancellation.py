"""How a call that nobody waits for any more ends: what it runs is told, wherever it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Cancellation:
    """What the work of one call is told through, from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._cancelled = False

    def cancel(self) -> None:
        """Call everything that waits for it; later additions are called at once."""
        with self._lock:
            self._cancelled = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def add(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self._callbacks.append(callback)
            cancelled = self._cancelled
        if cancelled:
            callback()

    def remove(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self._callbacks.remove(callback)


# Of the call that this thread works for.
current: ContextVar[Cancellation | None] = ContextVar("gem_rag_cancellation", default=None)


@contextmanager
def on_cancel(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` if the caller gives up while the block runs: it is cancelled from another
    thread, or an error or Ctrl-C ends the block."""
    cancellation = current.get()
    if cancellation is not None:
        cancellation.add(callback)
    try:
        yield
    except BaseException:
        callback()
        raise
    finally:
        if cancellation is not None:
            cancellation.remove(callback)
