"""Tool calls, structured output, and the conversion of messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_gem import ChatGem
from langchain_gem._messages import to_openai_messages
from pydantic import BaseModel
from standard import other_model

import gem_rag
from gem_rag import Gem, InputError


@tool
def read_file(path: str, lines: int) -> str:
    """Read a file."""
    return f"{lines} lines of {path}"


@tool
def list_folder(path: str) -> str:
    """List a folder."""
    return path


class Mood(BaseModel):
    """A mood."""

    mood: Literal["good", "bad"]
    level: int


TOOLS = [read_file, list_folder]
REQUEST = "Read 3 lines of notes.txt"
NAMED_CHOICE = {"type": "function", "function": {"name": "list_folder"}}


@pytest.fixture(scope="module", params=[False, True], ids=["template", "no template"])
def loaded(request: pytest.FixtureRequest) -> Iterator[Gem]:
    with gem_rag.load(other_model(without_template=request.param)) as gem:
        yield gem


@pytest.fixture
def chat(loaded: Gem) -> ChatGem:
    return ChatGem(model=loaded.name)


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("any", {"read_file", "list_folder"}),
        ("required", {"read_file", "list_folder"}),
        (True, {"read_file", "list_folder"}),
        ("list_folder", {"list_folder"}),
        (NAMED_CHOICE, {"list_folder"}),
    ],
    ids=str,
)
def test_a_tool_choice_that_forces_a_call(chat: ChatGem, choice: Any, called: set[str]) -> None:
    answer = chat.bind_tools(TOOLS, tool_choice=choice).invoke(REQUEST)
    (call,) = answer.tool_calls
    assert call["name"] in called
    assert not answer.content
    {t.name: t for t in TOOLS}[call["name"]].invoke(call)  # the arguments are valid


@pytest.mark.parametrize("choice", ["auto", None, "none"])
def test_a_tool_choice_that_allows_an_answer(chat: ChatGem, choice: Any) -> None:
    answer = chat.bind_tools(TOOLS, tool_choice=choice).invoke(REQUEST)
    assert bool(answer.tool_calls) != bool(answer.content)
    assert choice != "none" or not answer.tool_calls


def test_an_unknown_tool_choice_is_refused(chat: ChatGem) -> None:
    with pytest.raises(InputError, match="tool_choice is 'reed_file'"):
        chat.bind_tools(TOOLS, tool_choice="reed_file").invoke(REQUEST)


async def test_a_call_comes_as_one_chunk() -> None:
    bound = ChatGem().bind_tools(TOOLS, tool_choice="any")
    chunks = [chunk for chunk in bound.stream(REQUEST) if chunk.tool_call_chunks]
    assert len(chunks) == 1
    again = [chunk async for chunk in bound.astream(REQUEST) if chunk.tool_call_chunks]
    calls = [*chunks[0].tool_calls, *again[0].tool_calls, *bound.invoke(REQUEST).tool_calls]
    assert len({call["id"] for call in calls}) == 3
    assert all(call["args"] == calls[0]["args"] for call in calls)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Mood, Mood.model_json_schema()], ids=["class", "dict"])
def test_structured_output(chat: ChatGem, method: Any, schema: Any) -> None:
    answer = chat.with_structured_output(schema, method=method).invoke("I am happy.")
    assert isinstance(answer, Mood if schema is Mood else dict)
    Mood.model_validate(answer)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_with_the_raw_message(method: Any) -> None:
    chat = ChatGem().with_structured_output(Mood, method=method, include_raw=True)
    result = chat.invoke("I am happy.")
    assert isinstance(result["parsed"], Mood)
    assert isinstance(result["raw"], AIMessage)
    assert result["parsing_error"] is None


def test_truncated_output_is_a_parsing_error() -> None:
    chat = ChatGem(stop=['"mood'])
    result = chat.with_structured_output(Mood, include_raw=True).invoke("I am happy.")
    assert result["parsed"] is None
    assert result["parsing_error"] is not None


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="no method 'yaml'"):
        ChatGem().with_structured_output(Mood, method="yaml")  # type: ignore[arg-type]


def test_a_conversation_with_calls_is_read(chat: ChatGem) -> None:
    call = {"name": "read_file", "args": {"path": "a", "lines": 3}, "id": "1", "type": "tool_call"}
    messages = [
        SystemMessage("Be brief."),
        HumanMessage(REQUEST),
        AIMessage("", tool_calls=[call]),
        read_file.invoke(call),
    ]
    answer = chat.bind_tools(TOOLS, tool_choice="none").invoke(messages)
    assert not answer.tool_calls
    assert answer.usage_metadata["input_tokens"] > chat.get_num_tokens_from_messages(messages[:2])


def test_messages_in_openais_form() -> None:
    call = {"name": "read_file", "args": {"path": "ä", "lines": 1}, "id": "1", "type": "tool_call"}
    answer = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "d"}, call]
    converted = to_openai_messages(
        [
            SystemMessage("a"),
            HumanMessage(["b\n", {"type": "text", "text": "c", "cache_control": {"type": "x"}}]),
            AIMessage(answer, tool_calls=[call]),
            ToolMessage("e", tool_call_id="1"),
        ]
    )
    function = {"name": "read_file", "arguments": '{"path": "ä", "lines": 1}'}
    assert converted == [
        {"role": "system", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "b\n"}, {"type": "text", "text": "c"}],
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "d"}],
            "tool_calls": [{"type": "function", "id": "1", "function": function}],
        },
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "e"}]},
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image", "base64": "AA==", "mime_type": "image/png"},
        {"type": "audio", "base64": "AA==", "mime_type": "audio/wav"},
        {"type": "file", "base64": "AA==", "mime_type": "application/pdf"},
    ],
    ids=lambda part: part["type"],
)
def test_media_are_refused(part: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the model reads text only"):
        ChatGem().invoke([HumanMessage([{"type": "text", "text": "What is this?"}, part])])
