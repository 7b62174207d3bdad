"""Messages, tools and replies, converted between LlamaIndex's types and OpenAI's format."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool

from gem_rag import ChatReply, Generation

_ROLES = {"developer": "system", "chatbot": "assistant", "model": "assistant", "function": "tool"}


def to_openai_message(message: ChatMessage) -> dict[str, Any]:
    """Convert a message to OpenAI's format; gem-rag refuses the media types it cannot read."""
    role = message.role.value
    return {
        "role": _ROLES.get(role, role),
        "content": [part for block in message.blocks for part in _to_content_parts(block)],
        "tool_calls": [
            _to_openai_tool_call(block)
            for block in message.blocks
            if isinstance(block, ToolCallBlock)
        ],
        "tool_call_id": message.additional_kwargs.get("tool_call_id"),
    }


def from_reply(reply: ChatReply) -> ChatMessage:
    """Convert a reply of `Gem.chat` to an assistant message: its reasoning, and its text or its
    tool calls."""
    calls = [
        ToolCallBlock(
            tool_call_id=uuid.uuid4().hex, tool_name=call.name, tool_kwargs=call.arguments
        )
        for call in reply.tool_calls
    ]
    kwargs: dict[str, Any] = {}
    if calls:  # some of LlamaIndex reads them from blocks, some from additional_kwargs
        kwargs["tool_calls"] = [_to_openai_tool_call(call) for call in calls]
    if reply.invalid_tool_calls:
        kwargs["invalid_tool_calls"] = [dataclasses.asdict(c) for c in reply.invalid_tool_calls]
    blocks: list[ContentBlock] = []
    if reply.reasoning:
        blocks.append(ThinkingBlock(content=reply.reasoning))
    blocks += calls or [TextBlock(text=reply.text)]
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=kwargs)


def to_logprobs(generation: Generation) -> list[list[LogProb]] | None:
    """For each token its log-probability, or those of the likeliest in its place; None if not asked
    for."""
    if not generation.logprobs:
        return None
    return [
        [
            LogProb(token=token.text, logprob=token.logprob, bytes=list(token.text.encode()))
            for token in (one.top or (one,))
        ]
        for one in generation.logprobs
    ]


def to_tool_selection(call: ToolCallBlock) -> ToolSelection:
    """Convert a tool call to the type that LlamaIndex's agents execute."""
    arguments = call.tool_kwargs
    return ToolSelection(
        tool_id=call.tool_call_id or "",
        tool_name=call.tool_name,
        tool_kwargs=json.loads(arguments) if isinstance(arguments, str) else arguments,
    )


def to_openai_tool(tool: BaseTool) -> dict[str, Any]:
    """Convert a tool to OpenAI's format under its own name, which `to_openai_tool()` may alter."""
    metadata = tool.metadata
    function = {
        "name": metadata.get_name(),
        "description": metadata.description,
        "parameters": metadata.get_parameters_dict(),
    }
    return {"type": "function", "function": function}


def to_tool_choice(choice: str | dict[str, Any] | None, required: bool) -> str:
    """Convert a tool choice to that of `Gem.chat`: "auto", "any", "none", or a tool's name."""
    if isinstance(choice, dict):  # OpenAI's, or Anthropic's
        choice = choice.get("function", choice).get("name") or choice.get("type")
    if choice is None:
        return "any" if required else "auto"
    return "any" if choice == "required" else str(choice)


def to_raw_response(generation: Generation) -> dict[str, Any]:
    """The finish reason and token usage, with the keys that LlamaIndex's token counter reads."""
    prompt, completion = generation.prompt_tokens, len(generation.tokens)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    raw = {"finish_reason": generation.finish_reason, "usage": usage}
    return {**raw, **({"schema_error": e} if (e := generation.schema_error) else {})}


def _to_content_parts(block: ContentBlock) -> list[dict[str, str]]:
    if isinstance(block, TextBlock):
        return [{"type": "text", "text": block.text}]
    if isinstance(block, ToolCallBlock | ThinkingBlock | CachePoint):
        return []
    return [{"type": block.block_type}]


def _to_openai_tool_call(block: ToolCallBlock) -> dict[str, Any]:
    arguments = block.tool_kwargs
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    function = {"name": block.tool_name, "arguments": arguments}
    return {"id": block.tool_call_id, "type": "function", "function": function}
