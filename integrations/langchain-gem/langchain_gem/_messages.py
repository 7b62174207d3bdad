"""Messages and tool calls, converted between LangChain's types and OpenAI's format."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_openai_messages
from langchain_core.messages import InvalidToolCall as LangChainInvalidToolCall
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.tool import (
    ToolCallChunk,
    invalid_tool_call,
    tool_call,
    tool_call_chunk,
)

from gem_rag import ChatReply, InputError, InvalidToolCall, ToolCall

# What an assistant message says; its other blocks are calls that it has as such, private reasoning,
# or what a provider's own tools did. Media are kept, to be refused.
_SAID_BLOCKS = ("text", "refusal")
_MEDIA_BLOCKS = ("audio", "file", "image", "image_url", "input_audio", "video")


def to_openai_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Convert messages to dicts in OpenAI's format, with content as a list of blocks."""
    converted = convert_to_openai_messages(list(messages), text_format="block")
    for message in converted:
        if message["role"] == "assistant":
            message["content"] = [
                block
                for block in message["content"]
                if block["type"] in _SAID_BLOCKS + _MEDIA_BLOCKS
            ]
    return converted


def to_langchain_tool_call(call: ToolCall) -> LangChainToolCall:
    """Convert a tool call, giving it a new id."""
    return tool_call(name=call.name, args=call.arguments, id=_new_id())


def to_tool_call_chunk(call: ToolCall, index: int) -> ToolCallChunk:
    """Convert a complete tool call to the one chunk it takes in a stream."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return tool_call_chunk(name=call.name, args=arguments, id=_new_id(), index=index)


def to_invalid_tool_call(call: InvalidToolCall) -> LangChainInvalidToolCall:
    """Convert a call that cannot be made, giving it a new id."""
    return invalid_tool_call(name=call.name, args=call.arguments, id=_new_id(), error=call.error)


def to_invalid_tool_call_chunk(call: InvalidToolCall) -> ToolCallChunk:
    """Convert a call that cannot be made to a chunk that LangChain takes for none.

    When chunks are added up, LangChain completes the JSON of a call that was cut and makes it: as a
    JSON text, its arguments stay what was written.
    """
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return tool_call_chunk(name=call.name, args=arguments, id=_new_id(), index=None)


def reasoning_content(reply: ChatReply) -> dict[str, str]:
    """A reply's reasoning where LangChain looks for it to make a reasoning block."""
    return {"reasoning_content": reply.reasoning} if reply.reasoning else {}


def to_tool_choice(choice: str | bool | dict[str, Any] | None) -> str:
    """Convert a tool choice in any form LangChain accepts to the `tool_choice` of `Gem.chat`."""
    if isinstance(choice, dict):  # OpenAI's, or Anthropic's
        choice = choice.get("function", choice).get("name") or choice.get("type")
    if choice is True or choice == "required":
        return "any"
    if not isinstance(choice, str | None):
        raise InputError(f"tool_choice is {choice!r}: give 'auto', 'any', 'none' or a tool's name")
    return choice or "auto"


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"
