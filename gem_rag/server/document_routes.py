"""`/v1/rag/documents`: what an index holds, and what is added and removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gem_rag.aio import run_in_thread
from gem_rag.documents.document import Document
from gem_rag.errors import InputError
from gem_rag.rag.index import Index
from gem_rag.server import uploads
from gem_rag.server.bodies import Body, Part, read_body
from gem_rag.server.catalog import Catalog, Service
from gem_rag.server.errors import ApiError
from gem_rag.server.rag_fields import Value
from gem_rag.server.routes import ERRORS, STREAMS, event, event_stream, guarded, post_json

PATH = "/v1/rag/documents"
Work = Callable[[uploads.Tell], dict[str, Any]]


class DocumentFields(Part):
    """A document, as `Document` has it."""

    source: str = Field(min_length=1)
    text: str
    title: str = ""
    kind: Literal["text", "markdown", "rst"] = "text"
    metadata: Mapping[str, Value] = {}


class AddRequest(Body):
    """Documents to be added; one of a source that is there already takes its place."""

    index: str | None = None
    documents: list[DocumentFields] = Field(min_length=1)
    stream: bool = False


class SyncRequest(Body):
    """An index to be brought in sync with the files and folders that it was made of."""

    index: str | None = None
    stream: bool = False


def documents_router(service: Service) -> APIRouter:
    """The routes of `/v1/rag/documents`, and POST /v1/rag/sync."""
    router = APIRouter()

    @router.get(PATH, response_model=None, responses=ERRORS)
    async def documents(
        raw_request: Request,
        index: str | None = None,
        after: str = "",
        limit: int = Query(1000, ge=1, le=100_000),
    ) -> Response:
        """The documents of an index, by name; `after` is the last one that is known already."""

        async def found() -> dict[str, Any]:
            served = service.catalog.index(index)
            sources = await run_in_thread(lambda: served.index.sources)
            rest = [source for source in sources if source > after]
            data = [{"source": source, "object": "document"} for source in rest[:limit]]
            more = {"has_more": len(rest) > limit, "total": len(sources)}
            return {"object": "list", "index": served.name, "data": data, **more}

        return await guarded(raw_request, found())

    @router.get(f"{PATH}/text", response_model=None, responses=ERRORS)
    async def text(raw_request: Request, source: str, index: str | None = None) -> Response:
        """A document's text as it was indexed, which citations count characters of."""

        async def found() -> dict[str, Any]:
            served = service.catalog.index(index)
            return await run_in_thread(_text_fields, served.index, source)

        return await guarded(raw_request, found())

    @router.delete(PATH, response_model=None, responses=ERRORS)
    async def remove(raw_request: Request, source: str, index: str | None = None) -> Response:
        """Remove a document, or all of a file or folder."""

        async def removed() -> dict[str, Any]:
            served = service.catalog.index(index)
            gone = await run_in_thread(uploads.remove, served, source)
            return {"index": served.name, "removed": gone}

        return await guarded(raw_request, removed())

    @router.post(
        PATH,
        response_model=None,
        responses={**ERRORS, **STREAMS},
        openapi_extra={"requestBody": {"content": _CONTENT, "required": True}},
    )
    async def add(raw_request: Request) -> Response:
        """Add documents: texts as JSON, or files as a form, which are converted."""
        is_form = raw_request.headers.get("content-type", "").startswith("multipart/form-data")
        read = _read_form if is_form else _read_documents

        async def added() -> Response | dict[str, Any]:
            work, stream = await read(service.catalog, raw_request)
            return await _run(work, stream, raw_request)

        return await guarded(raw_request, added())

    async def sync(request: SyncRequest, raw_request: Request) -> Response | dict[str, Any]:
        """Bring an index in sync with its files; as server-sent events "progress" and "done"."""
        served = service.catalog.index(request.index)
        return await _run(partial(uploads.sync, served), request.stream, raw_request)

    post_json(router, "/v1/rag/sync", SyncRequest, sync, streams=True)
    return router


_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "index": {"type": "string"},
        "stream": {"type": "string", "enum": ["true", "false"]},
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
    },
    "required": ["file"],
}
_CONTENT = {
    "application/json": {"schema": AddRequest.request_schema()},
    "multipart/form-data": {"schema": _FORM},
}


def _text_fields(index: Index, source: str) -> dict[str, Any]:
    try:
        document = index.document(source)
    except InputError as error:
        raise ApiError(str(error), param="source", status=404) from error
    return {
        "source": document.source,
        "title": document.title,
        "kind": document.kind,
        "text": document.text,
        "places": [list(place) for place in document.places],
        "metadata": dict(document.metadata),
    }


async def _read_documents(catalog: Catalog, raw_request: Request) -> tuple[Work, bool]:
    request = await asyncio.to_thread(AddRequest.parse, await read_body(raw_request))
    catalog.check_count("documents", len(request.documents))
    served = catalog.index(request.index)
    documents = [Document(**fields.model_dump()) for fields in request.documents]
    return partial(uploads.add_documents, served, documents), request.stream


async def _read_form(catalog: Catalog, raw_request: Request) -> tuple[Work, bool]:
    try:
        form = await raw_request.form(max_files=catalog.settings.max_inputs, max_fields=16)
    except HTTPException as error:
        raise ApiError(f"the form cannot be read: {error.detail}") from error
    for name in form:
        if name not in ("index", "stream", "file"):
            raise ApiError(f"there is no field {name!r} here: use index, stream, file", param=name)
    files = [file for file in form.getlist("file") if isinstance(file, UploadFile)]
    if not files or len(files) != len(form.getlist("file")):
        raise ApiError("the form has no files: send each as a file, named 'file'", param="file")
    for file in files:
        uploads.check_name(file.filename)
    named = form.get("index")
    served = catalog.index(named if isinstance(named, str) else None)
    return partial(uploads.add_files, served, files), form.get("stream") == "true"


# -- writing, with progress ----------------------------------------------------------------------


async def _run(work: Work, stream: bool, raw_request: Request) -> Response | dict[str, Any]:
    """Do the work, which goes on to its end even if the client leaves."""
    if not stream:
        return await run_in_thread(work, lambda done, total: None)
    return event_stream(raw_request, _progress(work), error_name="error")


async def _progress(work: Work) -> AsyncGenerator[str, None]:
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

    def tell(done: int, total: int) -> None:
        loop.call_soon_threadsafe(steps.put_nowait, (done, total))

    working = asyncio.ensure_future(run_in_thread(work, tell))
    working.add_done_callback(lambda _: steps.put_nowait(None))
    while (step := await steps.get()) is not None:
        yield event({"files": step[0], "of": step[1]}, "progress")
    yield event(await working, "done")
