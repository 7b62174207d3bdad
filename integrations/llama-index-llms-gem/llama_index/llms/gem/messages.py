"""Messages, tools and answers, between LlamaIndex's form and OpenAI's, which gem-rag takes.

Knows nothing about models.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool

from gem_rag.generation.chat import ChatReply
from gem_rag.generation.sampling import Generation

_ROLES = {"developer": "system", "chatbot": "assistant", "model": "assistant", "function": "tool"}


def to_openai(message: ChatMessage) -> dict[str, Any]:
    """A message as gem-rag takes it; it refuses images and other media by name."""
    role = message.role.value
    return {
        "role": _ROLES.get(role, role),
        "content": [part for block in message.blocks for part in _parts(block)],
        "tool_calls": [_call(b) for b in message.blocks if isinstance(b, ToolCallBlock)],
        "tool_call_id": message.additional_kwargs.get("tool_call_id"),
    }


def from_reply(reply: ChatReply) -> ChatMessage:
    """What the model answered, or the tools that it calls."""
    calls = [
        ToolCallBlock(tool_call_id=uuid.uuid4().hex, tool_name=c.name, tool_kwargs=c.arguments)
        for c in reply.calls
    ]
    if not calls:
        return ChatMessage(role=MessageRole.ASSISTANT, content=reply.text)
    # Parts of LlamaIndex look for calls in blocks, and others in additional_kwargs.
    kwargs = {"tool_calls": [_call(call) for call in calls]}
    return ChatMessage(role=MessageRole.ASSISTANT, content=calls, additional_kwargs=kwargs)


def selection(call: ToolCallBlock) -> ToolSelection:
    """A call as LlamaIndex's tools take it."""
    arguments = call.tool_kwargs
    return ToolSelection(
        tool_id=call.tool_call_id or "",
        tool_name=call.tool_name,
        tool_kwargs=json.loads(arguments) if isinstance(arguments, str) else arguments,
    )


def function(tool: BaseTool) -> dict[str, Any]:
    """A tool in OpenAI's form, under its own name, which `to_openai_tool` might change."""
    metadata = tool.metadata
    described = {
        "name": metadata.get_name(),
        "description": metadata.description,
        "parameters": metadata.get_parameters_dict(),
    }
    return {"type": "function", "function": described}


def choice(asked: str | dict[str, Any] | None, required: bool) -> str:
    """gem-rag's word for a choice of tools: "auto", "any", "none", or a tool's name."""
    if isinstance(asked, dict):
        return str(asked["function"]["name"])
    if asked is None:
        return "any" if required else "auto"
    return "any" if asked == "required" else asked


def raw(generation: Generation) -> dict[str, Any]:
    """Why a generation ended and what it took, where LlamaIndex's token counter looks."""
    prompt, completion = generation.prompt_tokens, len(generation.tokens)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    return {"finish_reason": generation.finish_reason, "usage": usage}


def _parts(block: ContentBlock) -> list[dict[str, str]]:
    """What a block adds to a message's content in OpenAI's form."""
    if isinstance(block, TextBlock):
        return [{"type": "text", "text": block.text}]
    if isinstance(block, ToolCallBlock | ThinkingBlock | CachePoint):
        return []
    return [{"type": block.block_type}]


def _call(block: ToolCallBlock) -> dict[str, Any]:
    """A call in OpenAI's form."""
    arguments = block.tool_kwargs
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    called = {"name": block.tool_name, "arguments": written}
    return {"id": block.tool_call_id, "type": "function", "function": called}
