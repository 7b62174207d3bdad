"""`/v1/completions`: plain texts, continued."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any, ClassVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gem_rag.aio import iterate_in_thread, run_in_thread
from gem_rag.generation.sampling import Generation, SamplingOptions, TextStream
from gem_rag.model import Prompt
from gem_rag.server.catalog import PREFIX, Service
from gem_rag.server.chat import DONE
from gem_rag.server.errors import ApiError
from gem_rag.server.generation_fields import (
    HINTS,
    GenerationFields,
    generation_options,
    limit_tokens,
)
from gem_rag.server.observing import count_tokens
from gem_rag.server.routes import event, event_stream, post_json

_MAX_TOKENS = 16  # OpenAI's default


class CompletionRequest(GenerationFields):
    """A request to continue texts."""

    hints: ClassVar[Mapping[str, str]] = {
        **HINTS,
        "prompt": "Input should be a text, a list of texts, token ids or a list of them",
    }

    prompt: str | list[str] | list[int] | list[list[int]]

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts as a list. Raises ApiError if there are none, or several are streamed."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if not given:
            raise ApiError("prompt has 0 entries: give at least one", param="prompt")
        if self.stream and len(given) > 1:
            raise ApiError(
                f"prompt has {len(given)} entries, and one text can be streamed: send several "
                "requests",
                param="prompt",
            )
        return list(given)


def completions_router(service: Service) -> APIRouter:
    """The route POST /v1/completions."""

    async def complete(
        request: CompletionRequest, raw_request: Request
    ) -> Response | dict[str, Any]:
        """Continue texts, or token ids."""
        catalog = service.catalog
        if request.model.startswith(PREFIX):
            raise ApiError(
                f"{request.model} answers in chats: use /v1/chat/completions", param="model"
            )
        catalog.check_model(request.model)
        prompts = [prompt for prompt in request.prompts for _ in range(request.count)]
        catalog.check_count("prompt", len(prompts))
        options: SamplingOptions = {
            "temperature": 1.0,
            **generation_options(request),
            "max_tokens": limit_tokens(catalog, request.max_tokens, _MAX_TOKENS),
        }
        head = _fields(request.model)
        if request.stream:
            pieces = TextStream(await run_in_thread(catalog.gem.stream, prompts[0], **options))
            return event_stream(raw_request, _stream(head, request, pieces, raw_request), last=DONE)
        found = await run_in_thread(catalog.gem.generate, prompts, **options)
        choices = [
            _choice(i, one.text, one.finish_reason, _logprobs(one)) for i, one in enumerate(found)
        ]
        prompt_tokens = sum(one.prompt_tokens for one in found[:: request.count])
        reused = sum(one.reused_tokens for one in found[:: request.count])
        generated = sum(len(one.tokens) for one in found)
        used = count_tokens(raw_request, prompt_tokens, generated, reused)
        return {**head, "choices": choices, "usage": used}

    router = APIRouter()
    post_json(router, "/v1/completions", CompletionRequest, complete, streams=True)
    return router


async def _stream(
    head: Mapping[str, Any],
    request: CompletionRequest,
    pieces: TextStream[Generation],
    raw_request: Request,
) -> AsyncGenerator[str, None]:
    async for text in iterate_in_thread(pieces.reading()):
        yield event({**head, "choices": [_choice(0, text, None)]})
    found = pieces.generation
    yield event({**head, "choices": [_choice(0, "", found.finish_reason, _logprobs(found))]})
    used = count_tokens(raw_request, found.prompt_tokens, len(found.tokens), found.reused_tokens)
    if request.includes_usage:
        yield event({**head, "choices": [], "usage": used})


def _fields(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }


def _choice(
    index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(found: Generation) -> dict[str, Any] | None:
    """Log-probabilities as completions have them: lists, by token."""
    if not found.logprobs:
        return None
    lengths = [len(one.text) for one in found.logprobs]
    return {
        "tokens": [one.text for one in found.logprobs],
        "token_logprobs": [one.logprob for one in found.logprobs],
        "top_logprobs": [
            {other.text: other.logprob for other in one.top} for one in found.logprobs
        ],
        "text_offset": [sum(lengths[:place]) for place in range(len(lengths))],
    }
