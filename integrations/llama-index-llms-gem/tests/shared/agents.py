"""An LLM and tools for agents of which every step is known.

Annotations are not postponed in this file, because LlamaIndex derives schemas from them.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from llama_index.core.tools import BaseTool
from llama_index.llms.gem import GemLLM
from pydantic import Field

STEPS = ("find_page", "add", "none")
Digit = Annotated[int, Field(ge=0, le=9)]  # which a small model would write on and on


class Steps(GemLLM):
    """Calls the tools of `STEPS` one after another, and then answers."""

    def _prepare_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, tool_required: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        prepared = super()._prepare_chat_with_tools(tools, *args, **kwargs)
        roles = [message.role.value for message in prepared["messages"]]
        done = roles[len(roles) - roles[::-1].index("user") :].count("tool")
        return {**prepared, "tool_choice": "any" if tool_required else STEPS[done]}


class Tools:
    """Three tools that note their calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def find_page(self, number: Digit) -> str:
        """Find a page of the manual."""
        self.calls.append(("find_page", {"number": number}))
        return f"Page {number} says: add the numbers."

    def add(self, first: Digit, second: Digit) -> int:
        """Add two numbers."""
        self.calls.append(("add", {"first": first, "second": second}))
        return first + second

    def greet(self, loudly: bool) -> str:
        """Greet the user."""
        self.calls.append(("greet", {"loudly": loudly}))
        return "Hello!"

    def all(self) -> list[Callable[..., Any]]:
        return [self.find_page, self.add, self.greet]
