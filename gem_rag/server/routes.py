"""Routes: a body in, an answer out, errors in OpenAI's form, and no work for clients that left."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gem_rag.errors import GemError
from gem_rag.server.bodies import B, read_body
from gem_rag.server.errors import ApiError, api_error

_CLIENT_CLOSED_REQUEST = 499  # a status for logs; nobody receives it
_STATUSES = (400, 401, 403, 404, 409, 413, 429, 500, 503, 504)
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "OpenAI's error object"} for status in _STATUSES
}
T = TypeVar("T")
Answer = Callable[[B, Request], Awaitable[Response | dict[str, Any]]]
# Told of an error that nobody foresaw; gives what the client is told.
Examine = Callable[[Exception], Awaitable[ApiError]]
_log = logging.getLogger("gem_rag.server")


# Of routes that answer either way.
STREAMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}


def post_json(
    router: APIRouter, path: str, kind: type[B], answer: Answer[B], *, streams: bool = False
) -> None:
    """Add a route that answers JSON.

    Args:
        router: Where it is added.
        path: Its path.
        kind: The request's body.
        answer: Answers a request, or raises ApiError or GemError. It is cancelled when the client
            leaves.
        streams: Whether it may answer with server-sent events instead.
    """

    async def endpoint(raw_request: Request) -> Response:
        async def respond() -> Response | dict[str, Any]:
            body = await read_body(raw_request)
            # In a thread, and before the answer begins: parsing a large body takes a while.
            request = await asyncio.to_thread(kind.parse, body)
            return await while_connected(raw_request, answer(request, raw_request))

        return await guarded(raw_request, respond())

    endpoint.__doc__ = answer.__doc__
    content = {"application/json": {"schema": kind.request_schema()}}
    router.post(
        path,
        name=path,
        openapi_extra={"requestBody": {"content": content, "required": True}},
        responses={**ERRORS, **STREAMS} if streams else ERRORS,
        response_model=None,
    )(endpoint)


async def guarded(raw_request: Request, answer: Awaitable[Response | dict[str, Any]]) -> Response:
    """An answer as a response, or its error as one."""
    try:
        found = await answer
    except ClientDisconnect:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    except Exception as error:
        return (await explain(raw_request, error)).response()
    return found if isinstance(found, Response) else JSONResponse(found)


async def explain(raw_request: Request, error: Exception) -> ApiError:
    """What the client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GemError):
        return api_error(error)
    _log.error("request failed", exc_info=error)
    examine: Examine | None = getattr(raw_request.app.state, "gem_rag_examine", None)
    if examine is not None:
        return await examine(error)
    return ApiError("the server failed: its log says why", status=500)


async def while_connected(request: Request, answer: Awaitable[T]) -> T:
    """An answer, as long as the client waits for it. Raises ClientDisconnect if it leaves."""
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# -- server-sent events --------------------------------------------------------------------------


def event(data: Any, name: str = "") -> str:
    """A server-sent event, whose data are JSON."""
    written = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {written}\n\n" if name else f"data: {written}\n\n"


def event_stream(
    raw_request: Request,
    events: AsyncGenerator[str, None],
    *,
    error_name: str = "",
    last: str = "",
) -> StreamingResponse:
    """A response of server-sent events.

    Args:
        raw_request: The request.
        events: The events; closed when the client leaves. An error among them becomes the last one.
        error_name: The name of that event.
        last: What ends them, also after an error.
    """

    async def guarded_events() -> AsyncGenerator[str, None]:
        try:
            async with aclosing(events):
                async for one in events:
                    yield one
        except Exception as error:
            yield event((await explain(raw_request, error)).body(), error_name)
        if last:
            yield last

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(guarded_events(), media_type="text/event-stream", headers=headers)
