"""Tool calls and structured output work with any model, whatever it was trained for.

Annotations are not postponed in this file, because LlamaIndex derives schemas from them.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.gem import GemLLM
from llama_index.llms.gem.messages import to_openai_message
from pydantic import BaseModel, Field

from gem_rag import ChatReply, InputError, ToolCall


def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


def greet(name: Annotated[str, Field(max_length=12)]) -> str:
    """Greet someone."""
    return f"hello {name}"


TOOLS = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(greet)]
PROMPT = PromptTemplate("Name a city in {country}.")


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    people: int = Field(ge=0, le=99_999_999)


class Wrapped(BaseModel):
    """Something in something."""

    city: City
    kind: Literal["town", "village"]


@pytest.fixture(params=["gem-tiny", "chat", "bare"])
def llm(request: pytest.FixtureRequest, chat_folder: Path, bare_folder: Path) -> GemLLM:
    """The bundled model, a random one with a chat template, and one without."""
    folders = {"chat": chat_folder, "bare": bare_folder}
    return GemLLM(folders.get(request.param, request.param), max_tokens=180)


def get_tool_selection(llm: GemLLM, response: Any) -> ToolSelection:
    (selection,) = llm.get_tool_calls_from_response(response)
    return selection


# -- tools -------------------------------------------------------------------------------------


async def test_a_required_tool_is_called(llm: GemLLM) -> None:
    response = llm.chat_with_tools(TOOLS, "Add 1 and 2.", tool_required=True)
    selection = get_tool_selection(llm, response)
    assert selection.tool_name in ("add", "greet")
    assert response.message.content is None
    streamed = list(llm.stream_chat_with_tools(TOOLS, "Add 1 and 2.", tool_required=True))
    async_response = await llm.achat_with_tools(TOOLS, "Add 1 and 2.", tool_choice="required")
    for other in (streamed[-1], async_response):
        assert get_tool_selection(llm, other).tool_kwargs == selection.tool_kwargs
        assert other.raw == response.raw


@pytest.mark.parametrize("choice", ["add", {"type": "function", "function": {"name": "add"}}])
async def test_a_named_tool_is_called(llm: GemLLM, choice: Any) -> None:
    selection = get_tool_selection(llm, llm.chat_with_tools(TOOLS, "Hello.", tool_choice=choice))
    assert selection.tool_name == "add"
    assert {type(value) for value in selection.tool_kwargs.values()} == {int}
    assert selection.tool_kwargs.keys() == {"first", "second"}
    stream = await llm.astream_chat_with_tools(TOOLS, "Hello.", tool_choice=choice)
    *_, last = [response async for response in stream]
    assert get_tool_selection(llm, last).tool_kwargs == selection.tool_kwargs


def test_a_model_that_may_choose_calls_a_tool_or_answers(llm: GemLLM) -> None:
    message = llm.chat_with_tools(TOOLS, "Add 1 and 2.").message
    streamed = list(llm.stream_chat_with_tools(TOOLS, "Add 1 and 2."))
    assert streamed[-1].message.content == message.content
    calls = llm.get_tool_calls_from_response(streamed[-1], error_on_no_tool_call=False)
    assert bool(calls) != bool(message.content)


def test_no_tool_is_called_when_there_is_none_to_call(llm: GemLLM) -> None:
    for response in (
        llm.chat_with_tools(TOOLS, "Hello.", tool_choice="none", max_tokens=8),
        llm.chat_with_tools([], "Hello.", tool_required=True, max_tokens=8),
    ):
        assert response.message == llm.chat([ChatMessage("Hello.")], max_tokens=8).message
        assert not llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        with pytest.raises(ValueError, match=r"called no tool.*tool_required=True"):
            llm.get_tool_calls_from_response(response)


async def test_a_call_that_is_cut_is_an_error_and_no_answer(gem_tiny: GemLLM) -> None:
    settings = {"tool_required": True, "max_tokens": 9}
    streamed = list(gem_tiny.stream_chat_with_tools(TOOLS, "Greet Ann.", **settings))
    for response in (gem_tiny.chat_with_tools(TOOLS, "Greet Ann.", **settings), streamed[-1]):
        assert not response.message.content
        said = r"call of '\w*' cannot be made: the call was cut after 9 tokens: raise max_tokens"
        with pytest.raises(ValueError, match=said):
            gem_tiny.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    agent = FunctionAgent(tools=TOOLS, llm=GemLLM(max_tokens=9), initial_tool_choice="greet")
    with pytest.raises(ValueError, match=said):
        await agent.run("Greet Ann.")


@pytest.mark.parametrize(
    "options",
    [
        {"n": 1},
        {"parallel_tool_calls": False},
        {"timeout": 3.0, "max_retries": 1},
        {"logprobs": None},
    ],
    ids=str,
)
def test_options_that_change_no_answer_are_accepted(
    gem_tiny: GemLLM, options: dict[str, Any]
) -> None:
    wanted = gem_tiny.chat([ChatMessage("Hello.")], max_tokens=6).message
    assert gem_tiny.chat([ChatMessage("Hello.")], max_tokens=6, **options).message == wanted
    assert GemLLM(max_tokens=6, **options).chat([ChatMessage("Hello.")]).message == wanted


def test_options_that_would_change_the_answer_are_refused_by_name(gem_tiny: GemLLM) -> None:
    with pytest.raises(InputError, match="n=2 is not supported"):
        gem_tiny.chat([ChatMessage("Hello.")], n=2)
    with pytest.raises(InputError, match="best_of=2 is not supported"):
        GemLLM(best_of=2)


@pytest.mark.parametrize(
    "options",
    [{"presence_penalty": 3}, {"frequency_penalty": 3}, {"repetition_penalty": 0}],
    ids=str,
)
def test_penalties_reach_the_model(gem_tiny: GemLLM, options: dict[str, Any]) -> None:
    """It says which values are out of range."""
    [name] = options
    with pytest.raises(ValueError, match=name):
        GemLLM(**options)
    with pytest.raises(InputError, match=f"{name} must be"):
        gem_tiny.chat([ChatMessage("Hello.")], **options)


def test_log_probabilities(gem_tiny: GemLLM) -> None:
    asked = {"max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    *_, streamed = gem_tiny.stream_chat([ChatMessage("Hello.")], **asked)
    *_, completed = gem_tiny.stream_complete("The list", **asked)
    for response in (
        gem_tiny.chat([ChatMessage("Hello.")], **asked),
        gem_tiny.complete("The list", **asked),
        streamed,
        completed,
    ):
        assert response.logprobs is not None
        assert len(response.logprobs) == response.raw["usage"]["completion_tokens"]
        for likeliest in response.logprobs:
            assert [len(likeliest), max(one.logprob for one in likeliest) <= 0] == [2, True]
    assert gem_tiny.chat([ChatMessage("Hello.")], max_tokens=4).logprobs is None
    [[one], *_] = GemLLM(max_tokens=2, logprobs=True).complete("The list").logprobs or [[]]
    assert bytes(one.bytes).decode() == one.token


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_a_block_before_the_text(
    gem_tiny: GemLLM, stream: bool, monkeypatch: Any
) -> None:
    reply = ChatReply("Yes.", (1, 2), "stop", 3, reasoning="Hm.")

    def pieces(*args: Any, **settings: Any) -> Any:
        yield "Yes."
        return reply

    monkeypatch.setattr(type(gem_tiny.gem), "chat", lambda *args, **settings: reply)
    monkeypatch.setattr(type(gem_tiny.gem), "stream_chat", pieces)
    if stream:
        *_, response = gem_tiny.stream_chat([ChatMessage("Hello.")])
    else:
        response = gem_tiny.chat([ChatMessage("Hello.")])
    thought, said = response.message.blocks
    assert (thought.block_type, thought.content) == ("thinking", "Hm.")
    assert said.text == response.message.content == "Yes."
    assert to_openai_message(response.message)["content"] == [{"type": "text", "text": "Yes."}]


def test_a_reply_may_have_several_calls(gem_tiny: GemLLM, monkeypatch: Any) -> None:
    seen: list[Any] = []
    calls = (ToolCall("greet", {"name": "Ann"}), ToolCall("add", {"first": 1, "second": 2}))

    def chat(*args: Any, **settings: Any) -> ChatReply:
        seen.append(settings["parallel_tool_calls"])
        return ChatReply("", (1, 2), "stop", 3, tool_calls=calls)

    monkeypatch.setattr(type(gem_tiny.gem), "chat", chat)
    for allowed in (True, False):
        response = gem_tiny.chat_with_tools(TOOLS, "Hello.", allow_parallel_tool_calls=allowed)
        found = gem_tiny.get_tool_calls_from_response(response)
        assert [call.tool_name for call in found] == ["greet", "add"]
        assert len({call.tool_id for call in found}) == 2
    assert seen == [True, False]


def test_response_formats_of_openai(gem_tiny: GemLLM) -> None:
    asked = {"type": "json_schema",
             "json_schema": {"name": "city", "schema": City.model_json_schema()}}  # fmt: skip
    found = gem_tiny.chat([ChatMessage("Name a city.")], response_format=asked, max_tokens=200)
    City.model_validate_json(found.message.content or "")
    cut = gem_tiny.chat([ChatMessage("Name a city.")], response_format=asked, max_tokens=5)
    assert cut.raw["schema_error"] == "the text was cut after 5 tokens: raise max_tokens"


@pytest.fixture(scope="module")
def gem_tiny() -> GemLLM:
    return GemLLM()


def test_an_unknown_tool_is_named(llm: GemLLM) -> None:
    with pytest.raises(InputError, match="subtract"):
        llm.chat_with_tools(TOOLS, "Hello.", tool_choice="subtract")


async def test_predict_and_call_calls_the_tool(llm: GemLLM) -> None:
    arguments = {"user_msg": "Greet Ann.", "tool_choice": "greet"}
    response = llm.predict_and_call(TOOLS, **arguments)
    (output,) = response.sources
    assert output.tool_name == "greet"
    assert response.response.startswith("hello ")
    assert (await llm.apredict_and_call(TOOLS, **arguments)).response == response.response


def test_calls_and_results_go_back_into_the_conversation(llm: GemLLM) -> None:
    question = ChatMessage("Add 1 and 2.")
    call = llm.chat_with_tools(TOOLS, question, tool_choice="add").message
    (block,) = call.blocks
    assert call.additional_kwargs["tool_calls"] == [
        {
            "id": block.tool_call_id,
            "type": "function",
            "function": {"name": "add", "arguments": json.dumps(block.tool_kwargs)},
        }
    ]
    result = ChatMessage("3", role="tool", additional_kwargs={"tool_call_id": block.tool_call_id})
    history = [question, call, result]
    assert llm.chat_with_tools(TOOLS, chat_history=history, max_tokens=8).message
    assert len(history) == 3  # not modified
    assert "3" in render(llm, history)


def render(llm: GemLLM, messages: list[ChatMessage]) -> str:
    """The prompt of a conversation."""
    ids = llm.gem.tokenize_chat([to_openai_message(message) for message in messages])
    return str(llm.gem.tokenizer.decode(ids))


async def test_an_agent_of_llama_index_runs(bare_folder: Path) -> None:
    llm = GemLLM(bare_folder, max_tokens=60)
    called: list[str] = []

    def note(text: str = Field(max_length=12)) -> str:
        """Note something."""
        called.append(text)
        return "noted"

    tool = FunctionTool.from_defaults(note, return_direct=True)
    agent = FunctionAgent(tools=[tool], llm=llm, initial_tool_choice="note")
    response = await agent.run("Note the time.")
    assert called
    assert str(response) == "noted"


# -- structured output -------------------------------------------------------------------------


async def test_structured_prediction_gives_the_class(llm: GemLLM) -> None:
    city = llm.structured_predict(City, PROMPT, country="Italy")
    assert isinstance(city, City)
    assert await llm.astructured_predict(City, PROMPT, country="Italy") == city


async def test_structured_llms_answer_in_the_class(llm: GemLLM) -> None:
    structured = llm.as_structured_llm(Wrapped)
    messages = [ChatMessage("Name a village.")]
    response = structured.chat(messages)
    assert isinstance(response.raw, Wrapped)
    assert Wrapped.model_validate_json(response.message.content or "") == response.raw
    assert (await structured.achat(messages)).raw == response.raw
    assert isinstance(structured.complete("Name a village.").raw, Wrapped)


async def test_structured_streams_fill_the_class(bare_folder: Path) -> None:
    llm = GemLLM(bare_folder, max_tokens=100)
    prompt = PROMPT.model_copy()
    stream = llm.stream_structured_predict(City, prompt, country="Italy")
    objects = list(stream)
    assert isinstance(objects[-1], City)
    named = [o.name for o in objects if o.name]
    assert len(named[0]) < len(named[-1])  # partial objects were streamed
    assert prompt.output_parser is None
    async_objects = await llm.astream_structured_predict(City, prompt, country="Italy")
    assert [o.model_dump() async for o in async_objects] == [o.model_dump() for o in objects]


async def test_structured_llms_stream(bare_folder: Path) -> None:
    structured = GemLLM(bare_folder, max_tokens=100).as_structured_llm(City)
    messages = [ChatMessage("Name a city.")]
    *_, last = structured.stream_chat(messages)
    assert isinstance(last.raw, City)
    *_, async_last = [r async for r in await structured.astream_chat(messages)]
    assert async_last.raw == last.raw


def test_text_conforms_to_a_schema(llm: GemLLM) -> None:
    schema = City.model_json_schema()
    assert City.model_validate_json(llm.complete("A city:", schema=schema).text)
    *_, last = llm.stream_chat([ChatMessage("A city?")], schema=schema)
    assert City.model_validate_json(last.message.content or "")


async def test_concurrent_calls_equal_sequential_ones(llm: GemLLM) -> None:
    questions = ["Add 1 and 2.", "Greet Ann.", "Add 3."]

    async def arguments(question: str) -> Any:
        response = await llm.achat_with_tools(TOOLS, question, tool_required=True)
        return get_tool_selection(llm, response).tool_kwargs

    sequential = [await arguments(question) for question in questions]
    assert await asyncio.gather(*map(arguments, questions)) == sequential
