"""Tools for agents, over the Model Context Protocol: `search`, `ask` and `read_source`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gem_rag import __version__
from gem_rag.aio import run_in_thread
from gem_rag.errors import GemError
from gem_rag.rag.index import Index
from gem_rag.server.catalog import Catalog
from gem_rag.server.errors import ApiError
from gem_rag.server.rag_fields import citation_fields, hit_fields
from gem_rag.server.routes import while_connected

_MOST_CHARACTERS = 20_000  # of a source in one answer, so that a client's context is not filled
Question = Annotated[str, Field(description="The question, in plain words.")]
Name = Annotated[str | None, Field(description="Which index; may be left out if there is one.")]
Count = Annotated[int, Field(ge=1, le=100, description="How many passages to look for.")]
T = TypeVar("T")


def make_mcp_server(catalog: Callable[[], Catalog]) -> MCPServer[Any]:
    """An MCP server with the tools `search`, `ask` and `read_source`.

    Args:
        catalog: Gives what is served; may raise ApiError.
    """
    server: MCPServer[Any] = MCPServer(
        "gem-rag",
        version=__version__,
        instructions=(
            "Search documents and answer from them. Answers cite passages by source and "
            "characters; read_source shows what stands there."
        ),
        log_level="WARNING",
    )

    async def run(name: str | None, work: Callable[[Index], T], question: str = "") -> T:
        try:
            catalog().check_question(question)
            return await run_in_thread(work, catalog().index(name).index)
        except (ApiError, GemError) as error:
            raise ToolError(str(error)) from error

    @server.tool()
    async def search(question: Question, index: Name = None, k: Count = 5) -> dict[str, Any]:
        """Find the passages nearest to a question, with their sources and places."""

        def work(index: Index) -> dict[str, Any]:
            return {"passages": [hit_fields(hit) for hit in index.search(question, k)]}

        return await run(index, work, question)

    @server.tool()
    async def ask(question: Question, index: Name = None, k: Count = 5) -> dict[str, Any]:
        """Answer a question from the documents, with citations; says so if they do not answer."""

        def work(index: Index) -> dict[str, Any]:
            answer = index.ask(question, k)
            return {
                "answer": answer.text,
                "citations": [citation_fields(citation) for citation in answer.citations],
            }

        return await run(index, work, question)

    @server.tool()
    async def read_source(
        source: Annotated[str, Field(description="A source, as a passage or citation names it.")],
        index: Name = None,
        start: Annotated[int, Field(ge=0, description="The first character.")] = 0,
        stop: Annotated[
            int | None, Field(ge=1, description="The character after the last one.")
        ] = None,
    ) -> dict[str, Any]:
        """Read a document, or some of it; long ones come in parts."""

        def work(index: Index) -> dict[str, Any]:
            document = index.document(source)
            whole = len(document.text)
            end = min(whole if stop is None else stop, whole, start + _MOST_CHARACTERS)
            if start >= end:
                raise ToolError(f"{source!r} has {whole} characters: start before {whole}")
            return {
                "text": document.text[start:end],
                "span": [start, end],
                "place": document.place(start),
                "characters": whole,
            }

        return await run(index, work)

    return server


def mcp_app(server: MCPServer[Any], most_bytes: int) -> Starlette:
    """The server over streamable HTTP at /mcp.

    It keeps no sessions. The server's own guard checks hosts, origins and keys.
    """
    app = server.streamable_http_app(
        stateless_http=True,
        json_response=True,
        max_request_body_size=most_bytes,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    for route in app.routes:
        if isinstance(route, Route):
            route.app = _EndsWithClient(route.app)
    return app


class _EndsWithClient:
    """ASGI middleware that cancels a request when its client closes the connection, which is how
    MCP's clients cancel a call. The SDK looks for that only while it streams."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with suppress(ClientDisconnect):
            body = [{"type": "http.request", "body": await request.body()}]

            async def replay() -> Message:
                # After the body nothing comes but the disconnect, which cancels whoever waits here.
                return body.pop() if body else await asyncio.Future()

            await while_connected(request, self._app(scope, replay, send))
