"""`GemLLM` on vLLM does what it does on transformers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Steps, Tools
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.gem import GemLLM
from on_vllm import SMALL
from pydantic import BaseModel

from gem_rag import Gem

PROMPTS = ["Return the", "The list is", "Raises ValueError if", "A file object"]
QUESTION = [ChatMessage("What does open return?")]


class Point(BaseModel):
    """A point."""

    x: int
    y: int


def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


TOOLS = [FunctionTool.from_defaults(add)]


@pytest.fixture
def llm(vllm_gem: Gem) -> GemLLM:
    return GemLLM(vllm_gem, max_tokens=24)


def test_a_name_selects_the_shared_engine(vllm_gem: Gem) -> None:
    assert GemLLM("gem-tiny", engine="vllm", model_kwargs=SMALL).gem is vllm_gem


async def test_concurrent_results_equal_sequential_ones(llm: GemLLM) -> None:
    sequential = [llm.complete(prompt) for prompt in PROMPTS]
    assert await asyncio.gather(*map(llm.acomplete, PROMPTS)) == sequential


async def test_streams_add_up_to_the_whole_answer(llm: GemLLM) -> None:
    expected = llm.chat(QUESTION)
    for responses in (
        list(llm.stream_chat(QUESTION)),
        [r async for r in await llm.astream_chat(QUESTION)],
    ):
        assert "".join(r.delta or "" for r in responses) == expected.message.content
        assert (responses[-1].message, responses[-1].raw) == (expected.message, expected.raw)


def test_a_stop_string_ends_a_text(llm: GemLLM) -> None:
    whole = llm.complete(PROMPTS[0]).text
    stop = whole[3:6]
    assert llm.complete(PROMPTS[0], stop=[stop]).text == whole[: whole.index(stop)]


async def test_a_required_tool_is_called(llm: GemLLM) -> None:
    for response in (
        llm.chat_with_tools(TOOLS, "Add 1 and 2.", tool_required=True, max_tokens=80),
        await llm.achat_with_tools(TOOLS, "Add 1 and 2.", tool_choice="add", max_tokens=80),
    ):
        (call,) = llm.get_tool_calls_from_response(response)
        assert call.tool_name == "add"
        assert call.tool_kwargs.keys() == {"first", "second"}


async def test_structured_output_conforms_to_the_class(vllm_gem: Gem) -> None:
    llm, prompt = GemLLM(vllm_gem, max_tokens=60), PromptTemplate("A point on the {axis} axis.")
    assert isinstance(llm.structured_predict(Point, prompt, axis="x"), Point)
    assert isinstance(await llm.astructured_predict(Point, prompt, axis="x"), Point)
    assert Point.model_validate_json(
        llm.complete("A point:", schema=Point.model_json_schema()).text
    )


async def test_agents_run_together(vllm_gem: Gem) -> None:
    async def run(question: str) -> tuple[str, list[Any]]:
        tools = Tools()
        agent = FunctionAgent(tools=tools.all(), llm=Steps(vllm_gem, max_tokens=40))
        return str(await agent.run(question)), tools.calls

    questions = [f"What is {number} and {number}?" for number in range(3)]
    sequential = [await run(question) for question in questions]
    assert [[name for name, _ in calls] for _, calls in sequential] == [["find_page", "add"]] * 3
    assert await asyncio.gather(*map(run, questions)) == sequential
