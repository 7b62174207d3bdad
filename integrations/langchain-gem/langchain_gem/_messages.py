"""Conversations between LangChain's form and OpenAI's, which gem-rag takes.

Knows nothing about models.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_openai_messages
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.tool import ToolCallChunk, tool_call, tool_call_chunk

from gem_rag.generation.chat import ToolCall

# Parts of an answer that say again what its tool calls say, or that nobody was to read.
_UNREAD = ("tool_call", "invalid_tool_call", "function_call", "reasoning", "thinking")


def to_openai(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Messages as dicts, whose contents are lists of parts."""
    found = convert_to_openai_messages(list(messages), text_format="block")
    for message in found:
        if message["role"] == "assistant":
            message["content"] = [p for p in message["content"] if p["type"] not in _UNREAD]
    return found


def to_langchain(call: ToolCall) -> LangChainToolCall:
    """A call with an id of its own."""
    return tool_call(name=call.name, args=call.arguments, id=_new_id())


def to_chunk(call: ToolCall, index: int) -> ToolCallChunk:
    """The same for a stream: the call that comes at this place."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return tool_call_chunk(name=call.name, args=arguments, id=_new_id(), index=index)


def choice_name(choice: str | bool | dict[str, Any] | None) -> str:
    """A tool choice in any form that LangChain's users write, as gem-rag's."""
    if isinstance(choice, dict):
        name: str = choice["function"]["name"]
        return name
    if choice is True or choice == "required":
        return "any"
    return choice or "auto"


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"
