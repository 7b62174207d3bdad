"""`/v1/chat/completions`: conversations with the model, or with the documents of an index."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any, ClassVar

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from gem_rag.adapters import openai_logprobs
from gem_rag.aio import iterate_in_thread, run_in_thread
from gem_rag.generation.replies import ChatReply
from gem_rag.generation.sampling import Generation, SamplingOptions, TextStream
from gem_rag.server import rag_chat
from gem_rag.server.bodies import Part
from gem_rag.server.catalog import PREFIX, Catalog, Service
from gem_rag.server.chat_messages import ChatMessage, messages_of, reply_message, tokens_of
from gem_rag.server.errors import ApiError
from gem_rag.server.generation_fields import (
    HINTS,
    GenerationFields,
    generation_options,
    limit_tokens,
)
from gem_rag.server.observing import count_tokens
from gem_rag.server.rag_fields import RagFields
from gem_rag.server.routes import event, event_stream, post_json

DONE = "data: [DONE]\n\n"


class _Function(BaseModel):
    """A function that the model may call; further fields, such as `strict`, hold anyway."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolField(Part):
    """A tool that the model may call."""

    type: str
    function: _Function


class ChatRequest(GenerationFields):
    """A request for the next message of a conversation."""

    hints: ClassVar[Mapping[str, str]] = {
        **HINTS,
        "tool_choice": "Input should be 'auto', 'none', 'required' or a function's name, as in "
        '{"type": "function", "function": {"name": ...}}',
    }

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[ToolField] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    rag: RagFields | None = None

    def check(self) -> None:
        super().check()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ApiError(
                "max_tokens and max_completion_tokens say the same: give one", param="max_tokens"
            )
        if "chat_template" in (self.chat_template_kwargs or {}):  # a template is a program
            raise ApiError(
                "a request cannot bring its own chat_template: leave it out",
                param="chat_template_kwargs",
            )
        if self.model.startswith(PREFIX):
            for name in (
                "tools", "response_format", "chat_template_kwargs", "logprobs", "top_logprobs",
            ):  # fmt: skip
                if getattr(self, name):
                    raise ApiError(
                        f"{self.model} answers from documents and knows no {name}: leave it out",
                        param=name,
                    )
            if self.count > 1:
                raise ApiError(f"n is {self.n}, and {self.model} gives one answer", param="n")
        elif self.rag is not None:
            raise ApiError(
                f"rag goes with a model {PREFIX}NAME, which answers from an index", param="rag"
            )

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens that were asked for."""
        return self.max_tokens or self.max_completion_tokens

    @property
    def choice(self) -> str:
        """`tool_choice` in the words of `Gem.chat`. Raises ApiError."""
        choice = self.tool_choice
        if isinstance(choice, dict):
            function = choice.get("function")
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str):
                raise ApiError(f"tool_choice: {self.hints['tool_choice']}", param="tool_choice")
            return name
        if choice not in (None, "auto", "none", "required"):
            raise ApiError(f"tool_choice: {self.hints['tool_choice']}", param="tool_choice")
        return {"required": "any"}.get(choice or "auto", choice or "auto")


def chat_router(service: Service) -> APIRouter:
    """The route POST /v1/chat/completions."""

    async def chat(request: ChatRequest, raw_request: Request) -> Response | dict[str, Any]:
        """Write the next message of a conversation."""
        catalog, head = service.catalog, _Head(request.model)
        if request.count > 1:
            catalog.check_model(request.model)
            catalog.check_count("n", request.count)
            replies = await run_in_thread(_sample, catalog, request)
            return head.completion(replies, raw_request)
        if request.model.startswith(PREFIX):
            pieces: Generator[str, None, ChatReply] = await rag_chat.start(
                catalog, request, str(raw_request.base_url)
            )
        else:
            catalog.check_model(request.model)
            pieces = await run_in_thread(_start, catalog, request)
        if request.stream:
            chunks = _stream(head, request, pieces, raw_request)
            return event_stream(raw_request, chunks, last=DONE)
        return head.completion([await run_in_thread(_finish, pieces)], raw_request)

    router = APIRouter()
    post_json(router, "/v1/chat/completions", ChatRequest, chat, streams=True)
    return router


def _start(catalog: Catalog, request: ChatRequest) -> Generator[str, None, ChatReply]:
    """The pieces of a reply; what is wrong with the request is found before the first."""
    asked = _asked(catalog, request)
    return catalog.gem.stream_chat(**asked)


def _sample(catalog: Catalog, request: ChatRequest) -> list[ChatReply]:
    """Several replies."""
    return catalog.gem.sample_replies(n=request.count, **_asked(catalog, request))


def _asked(catalog: Catalog, request: ChatRequest) -> dict[str, Any]:
    """The arguments of `Gem.chat`."""
    gem, messages = catalog.gem, messages_of(request.messages)
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    shown = tools if request.choice != "none" else []
    prompt = gem.tokenize_chat(messages, shown, request.chat_template_kwargs)
    room = max(1, gem.context_length - len(prompt))
    options: SamplingOptions = {
        "temperature": 1.0,  # OpenAI's default
        **generation_options(request),
        "max_tokens": limit_tokens(catalog, request.wanted_tokens, room),
    }
    return {
        "messages": messages,
        "tools": tools,
        "tool_choice": request.choice if tools else "auto",
        "response_format": request.response_format,
        "chat_template_kwargs": request.chat_template_kwargs,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        **options,
    }


def _finish(pieces: Generator[str, None, Generation]) -> Generation:
    stream = TextStream(pieces)
    for _ in stream:
        pass
    return stream.generation


async def _stream(
    head: _Head,
    request: ChatRequest,
    pieces: Generator[str, None, Generation],
    raw_request: Request,
) -> AsyncGenerator[str, None]:
    """The chunks of a reply, as server-sent events."""
    stream = TextStream(pieces)
    yield head.chunk({"role": "assistant", "content": ""})
    async for text in iterate_in_thread(stream.reading()):
        yield head.chunk({"content": text})
    reply = stream.generation
    message = reply_message(reply)
    rest = {key: message[key] for key in message if key not in ("role", "content", "refusal")}
    if "tool_calls" in rest:
        rest["tool_calls"] = [
            {"index": index, **call} for index, call in enumerate(rest["tool_calls"])
        ]
    if rest:
        yield head.chunk(rest)
    yield head.chunk({}, finish_reason(reply), _logprobs(reply))
    used = count_tokens(raw_request, reply.prompt_tokens, tokens_of(reply), reply.reused_tokens)
    if request.includes_usage:
        yield head.event(choices=[], usage=used)


def finish_reason(reply: Generation) -> str:
    """Why a reply ended, in OpenAI's words."""
    called = isinstance(reply, ChatReply) and reply.tool_calls
    return "tool_calls" if called and reply.finish_reason != "length" else reply.finish_reason


def _logprobs(reply: Generation) -> dict[str, Any] | None:
    return openai_logprobs(reply) if reply.logprobs else None


class _Head:
    """What all chunks of a response have in common."""

    def __init__(self, model: str) -> None:
        self._model, self._id, self._created = model, f"chatcmpl-{uuid.uuid4().hex}", time.time()

    def completion(self, replies: Sequence[Generation], raw_request: Request) -> dict[str, Any]:
        """The response in one piece."""
        choices = [
            {
                "index": index,
                "message": reply_message(reply),
                "logprobs": _logprobs(reply),
                "finish_reason": finish_reason(reply),
            }
            for index, reply in enumerate(replies)
        ]
        generated = sum(map(tokens_of, replies))
        first = replies[0]
        used = count_tokens(raw_request, first.prompt_tokens, generated, first.reused_tokens)
        return {**self._fields("chat.completion"), "choices": choices, "usage": used}

    def chunk(
        self,
        delta: Mapping[str, Any],
        reason: str | None = None,
        logprobs: Mapping[str, Any] | None = None,
    ) -> str:
        """A piece of the message."""
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self.event(choices=[choice])

    def event(self, choices: Sequence[Mapping[str, Any]], **fields: Any) -> str:
        """A chunk as an event."""
        return event({**self._fields("chat.completion.chunk"), "choices": choices, **fields})

    def _fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": int(self._created),
            "model": self._model,
        }
