"""`/v1/rerank` and `/score`: how well passages answer a query, by the weights that generate.

Forms of Jina and Cohere, and vLLM's. Scores are `relevance` without its logarithm: the likelihood
of the query's tokens after the passage, from 0 to 1.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from gem_rag.aio import run_in_thread
from gem_rag.core.arrays import FloatArray
from gem_rag.model import Gem
from gem_rag.rag.reranking import relevance
from gem_rag.server.bodies import Body
from gem_rag.server.catalog import Catalog, Service
from gem_rag.server.errors import ApiError
from gem_rag.server.observing import note
from gem_rag.server.routes import post_json


class RankedText(BaseModel):
    """A document as Jina has it; further fields are not read."""

    text: str


class RerankRequest(Body):
    """Documents to be put in order."""

    model: str | None = None
    query: str
    documents: list[str | RankedText] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [text if isinstance(text, str) else text.text for text in self.documents]


class ScoreRequest(Body):
    """Pairs of texts: one with each of several, or as many with as many."""

    model: str | None = None
    text_1: str | list[str]
    text_2: str | list[str]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs. Raises ApiError if the numbers of texts do not fit."""
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second) or not first:
            raise ApiError(
                f"text_1 has {len(first)} entries and text_2 {len(second)}: give one and several, "
                "or as many of each",
                param="text_2",
            )
        return list(zip(first, second, strict=True))


def scoring_router(service: Service) -> APIRouter:
    """The routes POST /v1/rerank and /score, and their other names."""

    async def rerank(request: RerankRequest, raw_request: Request) -> dict[str, Any]:
        """Put documents in the order of their relevance to a query."""
        catalog = _checked(service, request.model)
        catalog.check_count("documents", len(request.documents))
        scores = await run_in_thread(_likelihood, catalog.gem, request.query, request.texts)
        best = np.argsort(-scores, kind="stable")[: request.top_n]
        texts = request.texts
        results = [
            {
                "index": int(place),
                "relevance_score": float(scores[place]),
                **({"document": {"text": texts[place]}} if request.return_documents else {}),
            }
            for place in best
        ]
        used = _count(catalog.gem, raw_request, [request.query, *texts])
        return {**_head(catalog, "rerank", request.model), "results": results, "usage": used}

    async def score(request: ScoreRequest, raw_request: Request) -> dict[str, Any]:
        """Score how well the second text of each pair answers the first."""
        catalog = _checked(service, request.model)
        pairs = request.pairs
        catalog.check_count("text_2", len(pairs))
        scores = [
            float((await run_in_thread(_likelihood, catalog.gem, query, [text]))[0])
            for query, text in pairs
        ]
        data = [
            {"index": index, "object": "score", "score": value}
            for index, value in enumerate(scores)
        ]
        used = _count(catalog.gem, raw_request, [text for pair in pairs for text in pair])
        return {
            **_head(catalog, "score", request.model),
            "object": "list",
            "created": int(time.time()),
            "data": data,
            "usage": used,
        }

    router = APIRouter()
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        post_json(router, path, RerankRequest, rerank)
    for path in ("/score", "/v1/score"):
        post_json(router, path, ScoreRequest, score)
    return router


def _checked(service: Service, model: str | None) -> Catalog:
    catalog = service.catalog
    catalog.check_model(model)
    return catalog


def _likelihood(gem: Gem, query: str, texts: list[str]) -> FloatArray:
    """The likelihood of the query's tokens after each text, from 0 to 1: float32 [texts]."""
    found: FloatArray = np.exp(relevance(gem, query, texts))
    return found


def _head(catalog: Catalog, kind: str, model: str | None) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "model": model or catalog.names[0]}


def _count(gem: Gem, raw_request: Request, texts: list[str]) -> dict[str, int]:
    """How many tokens the texts have."""
    tokens = sum(map(gem.count_tokens, texts))
    note(raw_request, prompt_tokens=tokens)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
