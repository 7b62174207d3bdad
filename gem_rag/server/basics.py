"""`/v1/models`, `/tokenize`, `/health` and `/metrics`."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gem_rag.aio import run_in_thread
from gem_rag.server.bodies import Body
from gem_rag.server.catalog import PREFIX, Catalog, Service
from gem_rag.server.chat import ToolField
from gem_rag.server.chat_messages import ChatMessage, messages_of
from gem_rag.server.errors import ApiError
from gem_rag.server.routes import ERRORS, guarded, post_json

_STARTED = int(time.time())


class TokenizeRequest(Body):
    """A text, or a conversation, to be tokenized; vLLM's form."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[ToolField] | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ApiError("give prompt, or messages, and not both", param="prompt")


def models_router(service: Service) -> APIRouter:
    """The routes GET /v1/models and /v1/models/NAME."""
    router = APIRouter()

    @router.get("/v1/models", response_model=None, responses=ERRORS)
    async def models(raw_request: Request) -> Response:
        """The model, and each index as a model that answers from it."""

        async def found() -> dict[str, Any]:
            catalog = service.catalog
            data = [_describe(catalog, name) for name in catalog.models]
            return {"object": "list", "data": data}

        return await guarded(raw_request, found())

    @router.get("/v1/models/{name:path}", response_model=None, responses=ERRORS)
    async def model(name: str, raw_request: Request) -> Response:
        """One of the models."""

        async def found() -> dict[str, Any]:
            catalog = service.catalog
            if name not in catalog.models:
                raise catalog.unknown_model(name)
            return _describe(catalog, name)

        return await guarded(raw_request, found())

    return router


def basics_router(service: Service) -> APIRouter:
    """The routes POST /tokenize, GET /health and GET /metrics."""
    router = APIRouter()

    async def tokenize(request: TokenizeRequest, raw_request: Request) -> dict[str, Any]:
        """Token ids of a text, or of a conversation, as the model reads it."""
        catalog = service.catalog
        catalog.check_model(request.model)
        if request.messages is None:
            tokens = await run_in_thread(catalog.gem.tokenize, request.prompt or "")
        else:
            tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
            tokens = await run_in_thread(
                catalog.gem.tokenize_chat, messages_of(request.messages), tools
            )
        most = catalog.gem.context_length
        return {"count": len(tokens), "max_model_len": most, "tokens": tokens}

    post_json(router, "/tokenize", TokenizeRequest, tokenize)

    @router.get("/health", response_model=None, responses={503: {"description": "dead"}})
    async def health() -> Response:
        """Whether the engine answers."""
        if service.failure:
            return JSONResponse({"status": "dead", "reason": service.failure}, status_code=503)
        return JSONResponse({"status": "ok"})

    @router.get("/metrics", response_model=None, response_class=PlainTextResponse)
    def metrics() -> Response:
        """What Prometheus reads."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


def _describe(catalog: Catalog, name: str) -> dict[str, Any]:
    root = catalog.names[0] if name.startswith(PREFIX) else name
    return {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "gem-rag",
        "root": root,
        "max_model_len": catalog.gem.context_length,
    }
