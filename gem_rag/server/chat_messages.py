"""Messages in OpenAI's form: what requests hold, and what responses do."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from gem_rag.generation.chat import Message
from gem_rag.generation.replies import ChatReply
from gem_rag.generation.sampling import Generation
from gem_rag.server.bodies import Part
from gem_rag.server.errors import ApiError


@dataclasses.dataclass(frozen=True)
class CitedReply(ChatReply):
    """A reply that rests on documents.

    Attributes:
        annotations: What it cites, in OpenAI's form.
        generated_tokens: How many tokens were generated for it.
    """

    annotations: tuple[dict[str, Any], ...] = ()
    generated_tokens: int = 0


class ContentPart(BaseModel):
    """A part of a message's content; further fields, such as `cache_control`, are not read."""

    type: str
    text: str | None = None
    refusal: str | None = None


class _CalledFunction(Part):
    name: str
    arguments: str | dict[str, Any] | None = None


class CalledTool(Part):
    """A tool that was called."""

    function: _CalledFunction
    id: str | None = None
    type: str | None = None
    index: int | None = None


class ChatMessage(Part):
    """A message; what earlier replies of this server had beside the text is not read again."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    schema_error: str | None = None
    reasoning_content: str | None = None


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """Messages as `Gem.chat` takes them. Raises ApiError for a part without its text."""
    for number, message in enumerate(messages):
        for part in message.content if isinstance(message.content, list) else ():
            if part.type in ("text", "refusal") and getattr(part, part.type) is None:
                raise ApiError(
                    f"messages[{number}] has a part of type {part.type!r} without {part.type}: "
                    "give it",
                    param="messages",
                )
    read = {"role", "content", "name", "tool_calls", "tool_call_id"}
    return [message.model_dump(include=read, exclude_none=True) for message in messages]


def tokens_of(reply: Generation) -> int:
    """How many tokens were generated for a reply."""
    return reply.generated_tokens if isinstance(reply, CitedReply) else len(reply.tokens)


def reply_message(reply: Generation) -> dict[str, Any]:
    """A reply as a message. A call that was cut, or breaks its schema, is shown as it is: OpenAI's
    clients are used to checking arguments."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if isinstance(reply, ChatReply) and (reply.tool_calls or reply.invalid_tool_calls):
        message["content"] = None
        message["tool_calls"] = [
            *(_call(call.name, _arguments(call.arguments)) for call in reply.tool_calls),
            *(_call(call.name, call.arguments) for call in reply.invalid_tool_calls),
        ]
    if isinstance(reply, ChatReply) and reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if isinstance(reply, CitedReply):
        message["annotations"] = list(reply.annotations)
    if reply.schema_error:
        message["schema_error"] = reply.schema_error
    return message


def _arguments(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
