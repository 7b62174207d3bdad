"""The app: all routes, on whatever engine the model runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from gem_rag import __version__
from gem_rag.aio import run_in_thread
from gem_rag.errors import first_line
from gem_rag.server import metrics
from gem_rag.server.basics import basics_router, models_router
from gem_rag.server.catalog import Catalog, Service
from gem_rag.server.chat import chat_router
from gem_rag.server.completions import completions_router
from gem_rag.server.document_routes import documents_router
from gem_rag.server.embedding_answer import EmbeddingAnswer
from gem_rag.server.embeddings import embeddings_router
from gem_rag.server.errors import ApiError
from gem_rag.server.guard import Guard
from gem_rag.server.mcp_server import make_mcp_server, mcp_app
from gem_rag.server.observing import Observed
from gem_rag.server.rag_routes import rag_router
from gem_rag.server.scoring import scoring_router
from gem_rag.server.settings import Settings

_PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = {
    # The page runs its own scripts alone, and asks its own server alone.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(catalog: Catalog) -> FastAPI:
    """The whole app of a model and its indexes."""
    service = Service(catalog.settings, catalog)
    routes = Routes(service)
    metrics.GENERATING.set_function(lambda: catalog.gem.num_generating)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with routes.running():
            yield

    app = FastAPI(
        title="gem-rag", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    for router in (
        chat_router(service),
        completions_router(service),
        embeddings_router(EmbeddingAnswer(service)),
        basics_router(service),
    ):
        app.include_router(router)
    routes.attach(app)
    app.state.gem_rag_examine = lambda error: examine(service, error)
    app.state.gem_rag_service = service
    app.add_exception_handler(RequestValidationError, _refuse_parameters)
    app.add_exception_handler(HTTPException, _refuse_route)
    protect(app, catalog.settings)
    return app


class Routes:
    """The routes that no engine's own server has: those over indexes, and the page.

    Args:
        service: What they answer from.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._mcp = make_mcp_server(lambda: service.catalog)

    def attach(self, app: FastAPI) -> None:
        """Add them to an app."""
        service = self._service
        for router in (
            models_router(service),
            scoring_router(service),
            rag_router(service),
            documents_router(service),
            page_router(),
        ):
            app.include_router(router)
        tools = mcp_app(self._mcp, service.settings.max_body_bytes).routes
        for route in tools:
            route.endpoint.__name__ = "mcp"  # type: ignore[attr-defined]  # which vLLM logs
        app.router.routes += tools
        app.mount("/page", _PageFiles(directory=_PAGE), name="page")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs what the routes need in the background."""
        async with self._mcp.session_manager.run():
            yield


def protect(app: FastAPI, settings: Settings) -> None:
    """Put what guards and observes an app around it."""
    app.add_middleware(Guard, settings=settings)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Observed)


def page_router() -> APIRouter:
    """The page."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_PAGE / "index.html", headers=_PAGE_HEADERS)

    return router


class _PageFiles(StaticFiles):
    """The page's scripts and styles."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_PAGE_HEADERS)
        return response


async def examine(service: Service, error: Exception) -> ApiError:
    """What to tell a client of an error that nobody foresaw: it may have cost the engine.

    A device that has failed answers nothing more, so a token is embedded to find out.
    """
    catalog = service.catalog
    try:
        await run_in_thread(catalog.gem.embed_tokens, [[0]])
    except Exception as failure:
        service.fail(
            f"the engine has died ({type(failure).__name__}: {first_line(failure)}): start the "
            "server again"
        )
        return ApiError(service.failure, status=503)
    return ApiError(f"the server failed ({type(error).__name__}): its log says why", status=500)


async def _refuse_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return ApiError(f"{name}: {first['msg']}", param=name).response()


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    said = {
        404: f"there is no route {path}: see /openapi.json",
        405: f"{path} does not take {request.method}: see /openapi.json",
    }
    message = said.get(error.status_code, error.detail)
    return ApiError(message, status=error.status_code, headers=error.headers).response()
