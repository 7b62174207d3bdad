"""Blocking calls from asyncio, in threads of their own.

The event loop's usual pool has a few threads; here many calls wait at once, so that an engine can
run them together. Knows nothing about what is called.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_pool = ThreadPoolExecutor(max_workers=128, thread_name_prefix="gem-rag")
_END = object()


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a blocking call, which sees the caller's context variables."""
    call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_pool, call)


async def iterate_in_thread(generator: Generator[T, Any, Any]) -> AsyncGenerator[T, None]:
    """What a blocking generator yields; it is closed when nobody listens any more."""
    turn = threading.Lock()  # a generator that is running cannot be closed

    def pull() -> Any:
        with turn:
            return next(generator, _END)

    def close() -> None:
        with turn:
            generator.close()

    try:
        while (item := await run_in_thread(pull)) is not _END:
            yield item
    finally:
        await run_in_thread(close)
