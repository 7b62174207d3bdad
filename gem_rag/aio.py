"""Blocking calls from asyncio, run in threads.

The event loop's default pool has only a few threads. This one has many, so that many calls can wait
at once and an engine can batch them.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from gem_rag._utils.cancellation import Cancellation
from gem_rag._utils.cancellation import current as cancellation_of_call

P = ParamSpec("P")
T = TypeVar("T")

_pool = ThreadPoolExecutor(max_workers=128, thread_name_prefix="gem-rag")
_END = object()


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a thread, with the caller's context variables.

    Args:
        function: The function.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Returns:
        What the function returns.

    Raises:
        Exception: What the function raises.
        asyncio.CancelledError: The caller was cancelled, or timed out; a generation that the
            function waits for then ends too.
    """
    cancellation, context = Cancellation(), contextvars.copy_context()
    context.run(cancellation_of_call.set, cancellation)
    call = functools.partial(context.run, function, *args, **kwargs)
    try:
        return await asyncio.get_running_loop().run_in_executor(_pool, call)
    except asyncio.CancelledError:
        cancellation.cancel()
        raise


async def iterate_in_thread(generator: Generator[T, Any, Any]) -> AsyncGenerator[T, None]:
    """Run a blocking generator in threads.

    Args:
        generator: The generator; it is closed when the iteration ends, for whatever reason.

    Yields:
        What the generator yields.
    """
    lock = threading.Lock()  # a running generator cannot be closed

    def advance() -> Any:
        with lock:
            return next(generator, _END)

    def close() -> None:
        with lock:
            generator.close()

    try:
        while (item := await run_in_thread(advance)) is not _END:
            yield item
    finally:
        await run_in_thread(close)
