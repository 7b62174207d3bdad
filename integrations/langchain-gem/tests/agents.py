"""A middleware and tools for agents of which every step is known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage
from pydantic import Field

STEPS = ("find_page", "add", "none")
Digit = Annotated[int, Field(ge=0, le=9)]  # which a small model would write on and on


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


class Steps(AgentMiddleware):
    """Makes the model call the tools of `STEPS` one after another, and then answer.

    Attributes:
        requests: What the model was asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[ModelRequest] = []

    def wrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
    ) -> ModelResponse:
        return handler(self._with_choice(request))

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        return await handler(self._with_choice(request))

    def _with_choice(self, request: ModelRequest) -> ModelRequest:
        self.requests.append(request)
        last_question = max(
            place for place, message in enumerate(request.messages) if message.type == "human"
        )
        done = sum(message.type == "tool" for message in request.messages[last_question:])
        return request.override(tool_choice=STEPS[done])


def calls_of(messages: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (call["name"], call["args"])
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    ]
