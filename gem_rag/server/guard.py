"""`Guard`: who may come in, how many at once, with how much, and for how long."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gem_rag.server import metrics
from gem_rag.server.bodies import too_large
from gem_rag.server.errors import ApiError
from gem_rag.server.settings import Settings

# The page has no secrets in it: what it asks for with the key that it is given, has.
_OPEN = ("/health", "/", "/page/")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware that turns away requests, and ends those that take too long.

    Args:
        app: The app.
        settings: What is allowed.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys = [_digest(key) for key in settings.api_keys]
        self._free = asyncio.Semaphore(settings.max_running)
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            if scope["method"] in _SAFE_METHODS:
                await self._app(scope, receive, send)
            else:
                await self._work(scope, self._bounded(receive), send)
        except ApiError as error:
            await error.response()(scope, receive, send)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer when it is the request's turn, within its time."""
        started = _Started(send)
        try:
            async with asyncio.timeout(self._settings.timeout), self._turn():
                await self._app(scope, receive, started)
        except TimeoutError:
            error = ApiError(
                f"the request took longer than {self._settings.timeout:g} s: ask for less at once",
                status=504,
            )
            await started.end(scope, receive, error)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._free.locked() and self._waiting >= self._settings.max_waiting:
            raise ApiError(
                f"{self._settings.max_running} requests are being answered and {self._waiting} "
                "wait: try again later",
                status=429,
                headers={"Retry-After": "1"},
            )
        self._waiting += 1
        try:
            with metrics.WAITING.track_inprogress():
                await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            with metrics.RUNNING.track_inprogress():
                yield
        finally:
            self._free.release()

    def _bounded(self, receive: Receive) -> Receive:
        """The body, up to what is allowed."""
        most, size = self._settings.max_body_bytes, 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise too_large(most)
            return message

        return bounded

    # -- who may come in ---------------------------------------------------------------------

    def _check(self, scope: Scope) -> None:
        """Raise ApiError for a request that may not come in."""
        headers = Headers(scope=scope)
        self._check_host(headers)
        if scope["method"] not in _SAFE_METHODS:
            self._check_origin(headers)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_open = path in _OPEN or path.startswith("/page/") or scope["method"] == "OPTIONS"
        if self._keys and not is_open and not self._has_key(headers):
            raise ApiError(
                "the API key is missing or wrong: send the header Authorization: Bearer KEY",
                status=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            raise too_large(self._settings.max_body_bytes)

    def _check_host(self, headers: Headers) -> None:
        """A stranger's web page whose name leads here cannot name this server otherwise."""
        allowed, host = self._settings.allowed_hosts, headers.get("host", "")
        if allowed and without_port(host) not in allowed:
            raise ApiError(
                f"this server is not called {host[:100]!r}: use one of {', '.join(allowed)}, or "
                "start it with --allowed-host NAME",
                status=403,
            )

    def _check_origin(self, headers: Headers) -> None:
        """A stranger's web page may send forms to any server."""
        origin = headers.get("origin")
        if origin is None or origin in self._settings.allowed_origins:
            return
        if origin.partition("://")[2] != headers.get("host"):
            raise ApiError(
                f"web pages of {origin[:100]!r} may not call this server: start it with "
                "--allowed-origin ORIGIN",
                status=403,
            )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        found = [secrets.compare_digest(given, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(found)


class _Started:
    """Sends a response, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False
        self._is_stream = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            content_type = Headers(raw=message["headers"]).get("content-type", "")
            self._is_stream = content_type.startswith("text/event-stream")
        await self._send(message)

    async def end(self, scope: Scope, receive: Receive, error: ApiError) -> None:
        """End with an error: as the response, or as the last event of a stream."""
        if not self._has_begun:
            await error.response()(scope, receive, self._send)
            return
        last = f"data: {json.dumps(error.body())}\n\n".encode() if self._is_stream else b""
        await self._send({"type": "http.response.body", "body": last, "more_body": False})


def without_port(host: str) -> str:
    """A Host header's name."""
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdigit() else host.lower()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
