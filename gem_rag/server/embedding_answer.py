"""Embeddings by a `Gem`, for the route that both engines have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from gem_rag.aio import run_in_thread
from gem_rag.core.arrays import FloatArray
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem
from gem_rag.server import embedding_metrics
from gem_rag.server.catalog import Service
from gem_rag.server.embeddings import EmbeddingRequest
from gem_rag.server.errors import ApiError
from gem_rag.server.observing import note

_SLICE = 256  # inputs that are embedded before it is looked at whether the client is still there


Embed = Callable[[Sequence[Sequence[int]]], Awaitable[FloatArray]]


class EmbeddingAnswer:
    """Answers embedding requests.

    Args:
        service: What they are answered from.
        embed: Gives rows of token ids their vectors; default the service's model, in threads.
    """

    def __init__(self, service: Service, embed: Embed | None = None) -> None:
        self._service, self._embed_rows = service, embed

    async def __call__(self, request: EmbeddingRequest, raw_request: Request) -> Response:
        """Embed texts, token ids or a conversation with the weights that also generate here."""
        with embedding_metrics.observed() as outcome:
            try:
                body, tokens = await self._embed(request, raw_request.headers.get("x-request-id"))
            except ApiError as error:
                outcome.status = error.status
                raise
            outcome.status = 200
        embedding_metrics.PROMPT_TOKENS.inc(tokens)
        note(raw_request, prompt_tokens=tokens)
        return Response(body, media_type="application/json")

    async def _embed(self, request: EmbeddingRequest, request_id: str | None) -> tuple[bytes, int]:
        """The response's body, and how many tokens the request had."""
        catalog = self._service.catalog
        if request.input is not None:
            catalog.check_count("input", len(request.inputs))
        rows = await catalog.codec.rows(request)
        try:
            embed = self._embed_rows or partial(embed_rows, catalog.gem)
            vectors = await embed(rows)
        except InputError as error:
            raise ApiError(str(error), param="input") from error
        except GemError as error:
            raise ApiError(str(error), status=503) from error
        body = await asyncio.to_thread(catalog.codec.response, request, rows, vectors, request_id)
        return body, sum(map(len, rows))


async def embed_rows(gem: Gem, rows: Sequence[Sequence[int]]) -> FloatArray:
    """Vectors of rows of token ids, in order; stops between slices if it is cancelled.

    Returns:
        Unit vectors: float32 [rows, dim].
    """
    # Rows of similar length are embedded together.
    order = np.argsort([len(row) for row in rows], kind="stable")
    vectors = np.empty((len(rows), gem.dim), dtype=np.float32)
    for start in range(0, len(order), _SLICE):
        part = order[start : start + _SLICE]
        embedding_metrics.WAITING.inc(len(part))
        try:
            vectors[part] = await run_in_thread(gem.embed_tokens, [rows[i] for i in part])
        finally:
            embedding_metrics.WAITING.dec(len(part))
    return vectors
