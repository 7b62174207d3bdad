"""Tools, structured output, and messages of every form."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_gem import ChatGem
from langchain_gem._messages import to_openai
from pydantic import BaseModel
from standard import other_model

from gem_rag import InputError


@tool
def read_file(path: str, lines: int) -> str:
    """Read a file."""
    return f"{lines} lines of {path}"


@tool
def list_folder(path: str) -> str:
    """List a folder."""
    return path


class Mood(BaseModel):
    """How somebody feels."""

    mood: Literal["good", "bad"]
    level: int


TOOLS = [read_file, list_folder]
ASKED = "Read 3 lines of notes.txt"
NAMED = {"type": "function", "function": {"name": "list_folder"}}


@pytest.fixture(params=[False, True], ids=["template", "no template"])
def chat(request: pytest.FixtureRequest) -> ChatGem:
    return ChatGem(model=other_model(without_template=request.param))


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("any", {"read_file", "list_folder"}),
        ("required", {"read_file", "list_folder"}),
        (True, {"read_file", "list_folder"}),
        ("list_folder", {"list_folder"}),
        (NAMED, {"list_folder"}),
    ],
    ids=str,
)
def test_a_choice_that_asks_for_a_call(chat: ChatGem, choice: Any, called: set[str]) -> None:
    answer = chat.bind_tools(TOOLS, tool_choice=choice).invoke(ASKED)
    (call,) = answer.tool_calls
    assert call["name"] in called
    assert not answer.content
    {t.name: t for t in TOOLS}[call["name"]].invoke(call)  # its arguments are what it takes


@pytest.mark.parametrize("choice", ["auto", None, "none"])
def test_a_choice_that_leaves_it_open(chat: ChatGem, choice: Any) -> None:
    answer = chat.bind_tools(TOOLS, tool_choice=choice).invoke(ASKED)
    assert bool(answer.tool_calls) != bool(answer.content)
    assert choice != "none" or not answer.tool_calls


def test_a_choice_that_is_no_tool(chat: ChatGem) -> None:
    with pytest.raises(InputError, match="tool_choice is 'reed_file'"):
        chat.bind_tools(TOOLS, tool_choice="reed_file").invoke(ASKED)


async def test_a_call_comes_as_one_chunk() -> None:
    bound = ChatGem().bind_tools(TOOLS, tool_choice="any")
    chunks = [chunk for chunk in bound.stream(ASKED) if chunk.tool_call_chunks]
    assert len(chunks) == 1
    again = [chunk async for chunk in bound.astream(ASKED) if chunk.tool_call_chunks]
    calls = [*chunks[0].tool_calls, *again[0].tool_calls, *bound.invoke(ASKED).tool_calls]
    assert len({call["id"] for call in calls}) == 3
    assert all(call["args"] == calls[0]["args"] for call in calls)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Mood, Mood.model_json_schema()], ids=["class", "dict"])
def test_structured_output(chat: ChatGem, method: Any, schema: Any) -> None:
    answer = chat.with_structured_output(schema, method=method).invoke("I am happy.")
    assert isinstance(answer, Mood if schema is Mood else dict)
    Mood.model_validate(answer)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_with_what_was_written(method: Any) -> None:
    chat = ChatGem().with_structured_output(Mood, method=method, include_raw=True)
    found = chat.invoke("I am happy.")
    assert isinstance(found["parsed"], Mood)
    assert isinstance(found["raw"], AIMessage)
    assert found["parsing_error"] is None


def test_what_was_cut_off_is_an_error_of_parsing() -> None:
    chat = ChatGem(stop=['"mood'])
    found = chat.with_structured_output(Mood, include_raw=True).invoke("I am happy.")
    assert found["parsed"] is None
    assert found["parsing_error"] is not None


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="no method 'yaml'"):
        ChatGem().with_structured_output(Mood, method="yaml")  # type: ignore[arg-type]


def test_a_conversation_with_calls_is_read(chat: ChatGem) -> None:
    call = {"name": "read_file", "args": {"path": "a", "lines": 3}, "id": "1", "type": "tool_call"}
    messages = [
        SystemMessage("Be brief."),
        HumanMessage(ASKED),
        AIMessage("", tool_calls=[call]),
        read_file.invoke(call),
    ]
    answer = chat.bind_tools(TOOLS, tool_choice="none").invoke(messages)
    assert not answer.tool_calls
    assert answer.usage_metadata["input_tokens"] > chat.get_num_tokens_from_messages(messages[:2])


def test_messages_in_openais_form() -> None:
    call = {"name": "read_file", "args": {"path": "ä", "lines": 1}, "id": "1", "type": "tool_call"}
    found = to_openai([
        SystemMessage("a"),
        HumanMessage(["b\n", {"type": "text", "text": "c", "cache_control": {"type": "x"}}]),
        AIMessage([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "d"}, call],
                  tool_calls=[call]),
        ToolMessage("e", tool_call_id="1"),
    ])  # fmt: skip
    function = {"name": "read_file", "arguments": '{"path": "ä", "lines": 1}'}
    assert found == [
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
def test_what_is_not_text_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the model reads text only"):
        ChatGem().invoke([HumanMessage([{"type": "text", "text": "What is this?"}, part])])
