"""`/v1/rag/search` and `/v1/rag/ask`: passages and answers from an index."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gem_rag.aio import iterate_in_thread, run_in_thread
from gem_rag.generation.sampling import TextStream
from gem_rag.rag.conversation import Conversation, Found, Turn
from gem_rag.server.bodies import Body, Part
from gem_rag.server.catalog import Service
from gem_rag.server.generation_fields import SamplingFields, limit_tokens, sampling_options
from gem_rag.server.observing import count_tokens
from gem_rag.server.rag_chat import converse
from gem_rag.server.rag_fields import RagFields, SearchFields, citation_fields, hit_fields
from gem_rag.server.routes import ERRORS, event, event_stream, guarded, post_json


class SearchRequest(SearchFields, Body):
    """A search of an index."""

    index: str | None = None
    question: str


class EarlierTurn(Part):
    """A question that was answered before."""

    question: str
    answer: str


class AskRequest(RagFields, SamplingFields, Body):
    """A question to an index."""

    index: str | None = None
    question: str
    history: list[EarlierTurn] = Field(default_factory=list)
    max_tokens: int | None = Field(None, ge=1)
    stream: bool = False


def rag_router(service: Service) -> APIRouter:
    """The routes GET /v1/rag/indexes, POST /v1/rag/search and POST /v1/rag/ask."""
    router = APIRouter()

    @router.get("/v1/rag/indexes", response_model=None, responses=ERRORS)
    async def indexes(raw_request: Request) -> Response:
        """The indexes that are served."""

        async def found() -> dict[str, Any]:
            data = []
            for served in service.catalog.indexes.values():
                manifest = await run_in_thread(getattr, served.index, "manifest")
                counts = {"documents": manifest.documents, "chunks": manifest.chunks}
                data.append({"id": served.name, "object": "index", "model": served.model, **counts})
            return {"object": "list", "data": data}

        return await guarded(raw_request, found())

    async def search(request: SearchRequest, raw_request: Request) -> dict[str, Any]:
        """Search an index for the passages nearest to a question."""
        served = service.catalog.index(request.index)
        service.catalog.check_question(request.question)
        hits = await run_in_thread(
            served.index.search, request.question, request.k, **request.search_options
        )
        return {"object": "list", "index": served.name, "data": [hit_fields(hit) for hit in hits]}

    async def ask(request: AskRequest, raw_request: Request) -> Response | dict[str, Any]:
        """Answer a question from an index, with citations.

        As server-sent events: "passages", then "text" as it is written, then "citations" and
        "done", or "error".
        """
        served = service.catalog.index(request.index)
        service.catalog.check_question(request.question)
        conversation = converse(
            served,
            request,
            [(turn.question, turn.answer) for turn in request.history],
            max_tokens=limit_tokens(service.catalog, request.max_tokens, None),
            **sampling_options(request),
        )
        found = await run_in_thread(conversation.find, request.question)
        if request.stream:
            events = _events(conversation, found, raw_request)
            return event_stream(raw_request, events, error_name="error")
        turn = await run_in_thread(_finish, conversation, found)
        answer = {"index": served.name, "text": turn.text, **_passages(found)}
        return {**answer, **_citations(turn), **_measures(turn, raw_request)}

    post_json(router, "/v1/rag/search", SearchRequest, search)
    post_json(router, "/v1/rag/ask", AskRequest, ask, streams=True)
    return router


def _finish(conversation: Conversation, found: Found) -> Turn:
    for _ in conversation.stream_found(found):
        pass
    return conversation.turns[-1]


async def _events(
    conversation: Conversation, found: Found, raw_request: Request
) -> AsyncGenerator[str, None]:
    yield event(_passages(found), "passages")
    pieces: TextStream[Any] = TextStream(conversation.stream_found(found))
    async for text in iterate_in_thread(pieces.reading()):
        yield event({"text": text}, "text")
    turn = conversation.turns[-1]
    yield event(_citations(turn), "citations")
    yield event(_measures(turn, raw_request), "done")


def _passages(found: Found) -> dict[str, Any]:
    return {"question": found.standalone, "passages": [hit_fields(hit) for hit in found.hits]}


def _citations(turn: Turn) -> dict[str, Any]:
    return {
        "citations": [citation_fields(citation) for citation in turn.citations],
        "unsupported": turn.answer.unsupported,
        "finish_reason": "length" if turn.answer.is_cut else "stop",
    }


def _measures(turn: Turn, raw_request: Request) -> dict[str, Any]:
    usage = turn.answer.usage
    timings = {name: round(seconds, 4) for name, seconds in turn.answer.timings.items()}
    prompt, generated, reused = (usage.get(name, 0) for name in ("prompt", "generated", "reused"))
    used = count_tokens(raw_request, prompt, generated, reused)
    return {"timings": timings, "usage": used}
