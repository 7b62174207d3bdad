"""Runs the app of a model on the transformers engine: binds, listens, and ends in order."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import uvicorn

from gem_rag.errors import GemError, InputError
from gem_rag.server.app import create_app
from gem_rag.server.catalog import Catalog, Service
from gem_rag.server.observing import JsonFormatter

OnFailure = Literal["exit", "restart", "stay"]
_M_ARENA_MAX = -8  # of glibc's malloc.h
_TRIM_SECONDS = 30.0
_SOON = 60.0  # seconds: an engine that dies sooner than this after a start would do so again
_log = logging.getLogger("gem_rag.server")


def serve(
    open_catalog: Callable[[], Catalog],
    host: str,
    port: int,
    *,
    shutdown_timeout: float = 30.0,
    on_failure: OnFailure = "exit",
    log_level: str = "info",
) -> None:
    """Serve until SIGINT or SIGTERM; what is being answered then may finish.

    Args:
        open_catalog: Loads the model and opens the indexes; called once the port is ours.
        host: The address to listen on.
        port: The port; 0 for a free one.
        shutdown_timeout: Seconds after which what is being answered is aborted.
        on_failure: What happens when the engine dies: "exit" ends with an error, for whoever
            supervises the process; "restart" begins anew in its place; "stay" goes on to refuse.
        log_level: Of uvicorn's loggers: "debug", "info", "warning" or "error".

    Raises:
        InputError: The port is taken, or the address is none of this machine's.
        GemError: The engine died.
    """
    start = time.monotonic()
    with _frugal_memory(), _bind(host, port) as listener:
        configure_logging(log_level)
        app = create_app(open_catalog())
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(shutdown_timeout),
        )
        server = uvicorn.Server(config)
        service: Service = app.state.gem_rag_service
        if on_failure != "stay":
            service.on_failure = lambda: setattr(server, "should_exit", True)
        address, bound = listener.getsockname()[:2]
        name = f"[{address}]" if ":" in address else address
        _log.info("listening on http://%s:%s", name, bound)
        with _ending_in_order():
            server.run(sockets=[listener])
    if service.failure and on_failure == "restart" and time.monotonic() - start > _SOON:
        _log.error("starting again: %s", service.failure)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if service.failure and on_failure != "stay":
        raise GemError(service.failure)


@contextmanager
def _frugal_memory() -> Iterator[None]:
    """Keep the heap small, where the C library is glibc.

    Threads share two heaps: with one each, two minutes of 64 clients took a server of gem-tiny to
    2.8 GiB, which still grew. What is free in them goes back to the system now and then: a load
    leaves holes of all sizes behind, of which glibc returns none but the last.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_M_ARENA_MAX, 2)
    ended = threading.Event()

    def trim() -> None:
        while not ended.wait(_TRIM_SECONDS):
            library.malloc_trim(0)

    thread = threading.Thread(target=trim, name="gem-rag-memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """A server that was told to end, and did, is no failure: uvicorn sends itself the signal again
    when it has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def configure_logging(level: str) -> None:
    """Write logs to stderr, as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in ("gem_rag.server", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens on an address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another with --host and "
            "--port"
        ) from error
    return listener
