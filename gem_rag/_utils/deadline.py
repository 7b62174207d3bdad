"""A time limit for Python code that is not ours, such as a model's chat template."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _TimeLimitError(BaseException):
    """Raised inside the code that takes too long, which it does not catch as an Exception."""


def run_within(seconds: float, function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, and end it if it takes too long.

    It ends between two steps of Python; a single step that never returns is not ended.

    Args:
        seconds: The limit.
        function: What to call.

    Returns:
        What it returns; what it raises is raised.

    Raises:
        TimeoutError: It took longer.
    """
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(_TimeLimitError)
        )
        raise TimeoutError(f"it took longer than {seconds:g} s")
    if "error" in outcome:
        raise outcome["error"]
    value: T = outcome["value"]
    return value
