"""What applications written for other models pass, and what comes of replies that are cut."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, ChatMessage, FunctionMessage, HumanMessage
from langchain_core.tools import tool
from langchain_gem import ChatGem, GemEmbeddings, GemLLM, GemRetriever
from pydantic import BaseModel, SecretStr

from gem_rag import ChatReply, InputError, ToolCall

QUESTION = "What does print do?"
ACCEPTED: list[dict[str, Any]] = [
    {"n": 1},
    {"parallel_tool_calls": False},
    {"stream_usage": True},
    {"timeout": 30, "max_retries": 2},
    {"temperature": None, "logprobs": None, "frequency_penalty": 0},
]
REFUSED: list[dict[str, Any]] = [{"best_of": 2}, {"logit_bias": {"1": 2}}]


class City(BaseModel):
    """A city."""

    name: str
    country: str


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Snow in {city}."


@tool
def unlock(code: SecretStr, tags: set[str], size: bytes) -> str:
    """Open a door."""
    return "open"


def whole_message(model: Any, question: str, stream: bool) -> Any:
    """The whole message, whose chunks LangChain adds up."""
    if not stream:
        return model.invoke(question)
    message, *chunks = model.stream(question)
    for chunk in chunks:
        message = message + chunk
    return message


@pytest.mark.parametrize("options", ACCEPTED, ids=str)
@pytest.mark.parametrize("kind", [ChatGem, GemLLM])
def test_options_that_change_no_answer_are_accepted(kind: Any, options: dict[str, Any]) -> None:
    wanted = kind(max_tokens=6).invoke(QUESTION)
    text = getattr(wanted, "content", wanted)
    for answer in (
        kind(max_tokens=6, **options).invoke(QUESTION),
        kind(max_tokens=6).invoke(QUESTION, **options),
        kind(max_tokens=6).bind(**options).invoke(QUESTION),
    ):
        assert getattr(answer, "content", answer) == text


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_options_that_would_change_the_answer_are_refused_by_name(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ValueError, match=f"{name}=.* is not supported"):
        ChatGem(**options)
    with pytest.raises(InputError, match=f"{name}=.* is not supported"):
        ChatGem().invoke(QUESTION, **options)
    with pytest.raises(InputError, match="no sampling setting 'temprature'"):
        ChatGem().invoke(QUESTION, temprature=1)


@pytest.mark.parametrize("kind", [ChatGem, GemLLM])
@pytest.mark.parametrize(
    "options",
    [{"presence_penalty": 3}, {"frequency_penalty": 3}, {"repetition_penalty": 0}, {"min_p": 2}],
    ids=str,
)
def test_penalties_reach_the_model(kind: Any, options: dict[str, Any]) -> None:
    """It says which values are out of range."""
    [name] = options
    for model in (kind(**options), kind().bind(**options)):
        with pytest.raises(InputError, match=f"{name} must be"):
            model.invoke(QUESTION)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_openais_form(stream: bool) -> None:
    model = ChatGem(max_tokens=4).bind(logprobs=True, top_logprobs=2)
    message = whole_message(model, QUESTION, stream)
    content = message.response_metadata["logprobs"]["content"]
    assert message.usage_metadata is not None
    assert len(content) == message.usage_metadata["output_tokens"]
    for one in content:
        assert bytes(one["bytes"]).decode() == one["token"]
        assert one["token_id"] == one["top_logprobs"][0]["token_id"]  # the likeliest was taken
        assert 0 >= one["top_logprobs"][0]["logprob"] >= one["top_logprobs"][1]["logprob"]
    assert "logprobs" not in ChatGem(max_tokens=4).invoke(QUESTION).response_metadata


def test_several_replies_to_one_conversation() -> None:
    model = ChatGem(max_tokens=8, n=3, temperature=1.5, seed=1)
    [generations] = model.generate([[HumanMessage(QUESTION)]]).generations
    assert len({one.text for one in generations}) > 1
    [again] = ChatGem(max_tokens=8, temperature=1.5, seed=1).generate(
        [[HumanMessage(QUESTION)]], n=3
    ).generations  # fmt: skip
    assert [one.text for one in again] == [one.text for one in generations]
    with pytest.raises(InputError, match="a stream has one reply, not n=3"):
        list(model.stream(QUESTION))
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ChatGem(n=0)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_a_block_before_the_text(stream: bool, monkeypatch: Any) -> None:
    model = ChatGem()
    reply = ChatReply("Yes.", (1, 2), "stop", 3, reasoning="Hm.")

    def pieces(*args: Any, **settings: Any) -> Any:
        yield "Yes."
        return reply

    monkeypatch.setattr(type(model.gem), "sample_replies", lambda *args, **settings: [reply])
    monkeypatch.setattr(type(model.gem), "stream_chat", pieces)
    message = whole_message(model, QUESTION, stream)
    assert message.content == "Yes."
    kinds = [
        (block["type"], block.get("reasoning") or block["text"]) for block in message.content_blocks
    ]
    assert kinds == [("reasoning", "Hm."), ("text", "Yes.")]


def test_a_reply_may_have_several_calls(monkeypatch: Any) -> None:
    seen: list[Any] = []
    model = ChatGem()
    calls = (ToolCall("weather", {"city": "Oslo"}), ToolCall("weather", {"city": "Rome"}))

    def replies(*args: Any, **settings: Any) -> list[ChatReply]:
        seen.append(settings.get("parallel_tool_calls"))
        return [ChatReply("", (1, 2), "stop", 3, tool_calls=calls)]

    monkeypatch.setattr(type(model.gem), "sample_replies", replies)
    found = model.bind_tools([weather]).invoke("Oslo and Rome?").tool_calls
    assert [call["args"]["city"] for call in found] == ["Oslo", "Rome"]
    assert len({call["id"] for call in found}) == 2
    model.bind_tools([weather], parallel_tool_calls=False).invoke("Oslo and Rome?")
    ChatGem(parallel_tool_calls=False).invoke("Oslo?")
    assert seen == [None, False, False]


def test_the_model_may_be_the_first_argument() -> None:
    for kind in (ChatGem, GemLLM, GemEmbeddings):
        assert kind("gem-tiny").model_name == "gem-tiny"
    assert GemRetriever("here").folder == "here"


def test_traces_hold_no_secrets() -> None:
    model = ChatGem(model_kwargs={"token": "hf_secret", "dtype": "float32"})
    for shown in (dumps(model), str(model._identifying_params), str(model._get_ls_params())):
        assert "hf_secret" not in shown
    assert "float32" in dumps(model)


@pytest.mark.parametrize(
    ("response_format", "keys"),
    [
        ({"type": "json_schema",
          "json_schema": {"name": "city", "schema": City.model_json_schema()}},
         {"name", "country"}),
        ({"type": "json_object"}, None),
    ],
)  # fmt: skip
def test_response_formats_of_openai(response_format: Any, keys: set[str] | None) -> None:
    answer = ChatGem().invoke("Where is Oslo?", response_format=response_format)
    found = json.loads(str(answer.content))
    assert isinstance(found, dict)
    assert keys is None or found.keys() == keys
    beside = ChatGem().bind_tools([weather], tool_choice="none", response_format=response_format)
    assert isinstance(json.loads(str(beside.invoke("Where is Oslo?").content)), dict)


def test_the_profile_says_what_the_model_can_do() -> None:
    profile = ChatGem().profile
    assert profile is not None
    assert profile["structured_output"]
    assert profile["tool_calling"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_is_an_invalid_call(stream: bool) -> None:
    model = ChatGem(max_tokens=9).bind_tools([weather], tool_choice="any")
    message = whole_message(model, "The weather in Oslo?", stream)
    assert (message.content, message.tool_calls) == ("", [])
    [call] = message.invalid_tool_calls
    assert call["name"] == "weather"
    [error] = message.response_metadata["tool_call_errors"]
    assert error == "the call was cut after 9 tokens: raise max_tokens"
    assert stream or call["error"] == error  # LangChain keeps none of a stream's


@pytest.mark.parametrize("schema", [City, City.model_json_schema()], ids=["class", "json"])
def test_an_answer_that_is_cut_is_an_error(schema: Any) -> None:
    model = ChatGem(max_tokens=9).with_structured_output(schema)
    said = r"not of the schema: the text was cut after 9 tokens: raise max_tokens"
    with pytest.raises(OutputParserException, match=said):
        model.invoke("Where is Oslo?")
    with pytest.raises(OutputParserException, match=said):
        list(model.stream("Where is Oslo?"))
    raw = ChatGem(max_tokens=9).with_structured_output(schema, include_raw=True)
    found = raw.invoke("Where is Oslo?")
    assert found["parsed"] is None
    assert "was cut" in str(found["parsing_error"])


async def test_an_answer_that_is_cut_is_an_error_to_asyncio_too() -> None:
    model = ChatGem(max_tokens=9).with_structured_output(City)
    with pytest.raises(OutputParserException, match="was cut"):
        await model.ainvoke("Where is Oslo?")
    with pytest.raises(OutputParserException, match="was cut"):
        async for _ in model.astream("Where is Oslo?"):
            pass


def test_tools_of_all_types_work_beside_each_other() -> None:
    with pytest.warns(UserWarning, match="uniqueItems of tags of the tool 'unlock'"):
        answer = ChatGem().bind_tools([weather, unlock], tool_choice="any").invoke("Open the door")
    assert [call["name"] for call in answer.tool_calls + answer.invalid_tool_calls] != []


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ({"type": "tool", "name": "weather"}, True),  # Anthropic's
        ({"type": "any"}, True),
        ({"type": "none"}, False),
        ({"type": "function", "function": {"name": "weather"}}, True),
    ],
    ids=str,
)
def test_tool_choices_of_others(choice: Any, called: bool) -> None:
    answer = ChatGem(max_tokens=60).bind_tools([weather], tool_choice=choice).invoke(QUESTION)
    assert bool(answer.tool_calls) is called
    with pytest.raises(InputError, match="tool_choice"):
        ChatGem().bind_tools([weather], tool_choice={"type": 3})


@pytest.mark.parametrize(
    "block",
    [
        {"type": "server_tool_call", "name": "web_search", "id": "1", "args": {}},
        {"type": "web_search_tool_result", "content": []},
        {"type": "reasoning", "reasoning": "Hm."},
        {"type": "redacted_thinking", "data": "x"},
    ],
    ids=lambda block: block["type"],
)
def test_histories_of_others(block: dict[str, Any]) -> None:
    model = ChatGem(max_tokens=4)
    said = [HumanMessage(QUESTION), AIMessage([{"type": "text", "text": "It writes."}, block]),
            HumanMessage("Where?")]  # fmt: skip
    plain = [said[0], AIMessage("It writes."), said[2]]
    assert model.invoke(said).content == model.invoke(plain).content
    refused = AIMessage([{"type": "refusal", "refusal": "It writes."}])
    assert model.invoke([said[0], refused, said[2]]).content == model.invoke(plain).content


def test_roles_of_others() -> None:
    said = [
        ChatMessage(role="developer", content="Be brief."),
        HumanMessage(QUESTION),
        FunctionMessage(name="search", content="It writes text."),
        ChatMessage(role="user", content="Well?"),
    ]
    assert ChatGem(max_tokens=4).invoke(said).content


# -- embeddings and retrieval ----------------------------------------------------------------------


def test_settings_of_sentence_transformers() -> None:
    usual = {"normalize_embeddings": True, "batch_size": 8, "show_progress_bar": False}
    own = GemEmbeddings()
    other = GemEmbeddings(encode_kwargs=usual)
    assert other.embed_documents(["a"]) == own.embed_documents(["a"])
    assert other.embed_query("a") == own.embed_query("a")
    with pytest.raises(InputError, match="normalize_embeddings=False is not supported"):
        GemEmbeddings(encode_kwargs={"normalize_embeddings": False}).embed_query("a")


def test_a_blank_text_does_not_fail_its_batch() -> None:
    embeddings = GemEmbeddings()
    first, blank, empty = embeddings.embed_documents(["a pump", "\n\t ", ""])
    assert first == pytest.approx(embeddings.embed_documents(["a pump"])[0], abs=1e-5)
    assert blank == empty
    assert sum(x * x for x in blank) == pytest.approx(1, abs=1e-5)
    assert embeddings.embed_query("") == blank  # the model has no prompts


def test_a_retriever_takes_documents_of_langchain(tmp_path: Any) -> None:
    retriever = GemRetriever(tmp_path / "index", k=1)
    pages = [
        Document("The pump runs at night.", metadata={"source": "a.pdf", "page": 1}),
        Document("The lamp is green.", metadata={"source": "a.pdf", "page": 2}),
        Document("A door has two sides.", id="door"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(retriever.sync(pages).added) == 3
    [found] = retriever.invoke("lamp")
    assert found.page_content == "The lamp is green."
    assert (found.metadata["source"], found.metadata["page"]) == ("a.pdf#2", 2)
    assert retriever.sync(pages).embedded == 0
    with pytest.raises(InputError, match="has no metadata 'source' and no id"):
        retriever.sync([Document("Nameless.")])
