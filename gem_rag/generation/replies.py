"""What comes back in a conversation: `ChatReply` and the tool calls in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gem_rag._utils.deprecation import warn_renamed
from gem_rag.generation.sampling import Generation


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model calls.

    Attributes:
        name: The tool's name.
        arguments: Its arguments; they follow the tool's schema.
    """

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class InvalidToolCall:
    """A call that cannot be made.

    Attributes:
        name: The tool's name, as far as it was written.
        arguments: Its arguments as they were written.
        error: What is wrong: it was cut, or breaks a part of the schema that no grammar holds.
    """

    name: str
    arguments: str
    error: str


@dataclass(frozen=True)
class ChatReply(Generation):
    """A reply in a conversation.

    Attributes:
        tool_calls: The tools that the model calls; `text` is empty then.
        invalid_tool_calls: Calls that cannot be made; likewise.
        reasoning: What a reasoning model wrote before its answer; it is no part of `text`.
    """

    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    reasoning: str = ""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Deprecated: `tool_calls`."""
        warn_renamed("ChatReply.calls", "ChatReply.tool_calls")
        return self.tool_calls
