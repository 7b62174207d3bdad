"""Generation by `ChatGem` and `GemLLM`: settings, stop strings, streaming, usage, callbacks."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_gem import ChatGem, GemLLM

from gem_rag import Gem, InputError

ADAPTERS = [ChatGem, GemLLM]
PROMPT = "Open a file and"


class RecordingHandler(BaseCallbackHandler):
    """Records new tokens and final responses."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.ends: list[Any] = []

    def on_llm_new_token(self, token: str, **_: Any) -> None:
        self.pieces.append(token)

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.ends.append(response)


def text_of(output: Any) -> str:
    return output if isinstance(output, str) else str(output.content)


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_a_stream_adds_up_to_what_invoke_returns(adapter: Any) -> None:
    model = adapter(max_tokens=12)
    whole = text_of(model.invoke(PROMPT))
    pieces = [text_of(piece) for piece in model.stream(PROMPT)]
    assert len(pieces) > 2
    assert "".join(pieces) == whole
    assert [text_of(piece) async for piece in model.astream(PROMPT)] == pieces
    assert text_of(await model.ainvoke(PROMPT)) == whole


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_stop_strings_of_adapter_and_call_are_merged(adapter: Any) -> None:
    whole = text_of(adapter(max_tokens=24).invoke(PROMPT))
    early, late = whole[4:6], whole[8:11]
    for constructor_stop, call_stop in (([early], [late]), ([late], [early])):
        model = adapter(max_tokens=24, stop=constructor_stop)
        expected = whole[: whole.index(early)]
        assert text_of(model.invoke(PROMPT, stop=call_stop)) == expected
        assert text_of(await model.ainvoke(PROMPT, stop=call_stop)) == expected
        assert "".join(text_of(piece) for piece in model.stream(PROMPT, stop=call_stop)) == expected
        assert all(text_of(row) == expected for row in model.batch([PROMPT] * 3, stop=call_stop))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_calls_settings_come_before_the_adapters(adapter: Any) -> None:
    model = adapter(max_tokens=12, temperature=0.0)
    greedy = text_of(model.invoke(PROMPT))
    assert greedy.startswith(text_of(model.invoke(PROMPT, max_tokens=2)))
    warm = {"temperature": 2.0, "seed": 1, "top_p": 0.95, "top_k": 500}
    assert text_of(model.invoke(PROMPT, **warm)) != greedy
    assert text_of(model.invoke(PROMPT, **warm)) == text_of(model.bind(**warm).invoke(PROMPT))
    assert text_of(adapter(max_tokens=12, **warm).invoke(PROMPT, temperature=0.0)) == greedy


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_settings_out_of_range_and_unknown_ones_are_refused(adapter: Any) -> None:
    with pytest.raises(InputError, match="temperature must be 0 or more"):
        adapter(temperature=-1).invoke(PROMPT)
    with pytest.raises(InputError, match="no sampling setting 'temprature'"):
        adapter().invoke(PROMPT, temprature=1)
    with pytest.raises(InputError, match="context"):
        adapter().invoke("word " * 2000)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_tokens_are_the_models_own(adapter: Any, gem: Gem) -> None:
    model = adapter()
    assert model.get_token_ids("def open():") == gem.tokenize("def open():")
    assert model.get_num_tokens("def open():") == gem.count_tokens("def open():")
    assert adapter(custom_get_token_ids=lambda _: [1, 2]).get_num_tokens("def") == 2


def test_a_conversation_is_counted_with_its_template(gem: Gem) -> None:
    chat = ChatGem(max_tokens=1)
    prompt_tokens = chat.invoke(PROMPT).usage_metadata["input_tokens"]
    assert chat.get_num_tokens_from_messages([HumanMessage(PROMPT)]) == prompt_tokens

    def add(first: int, second: int) -> int:
        """Add numbers."""
        return first + second

    assert (
        chat.get_num_tokens_from_messages([HumanMessage(PROMPT)], tools=[add]) > prompt_tokens + 10
    )


def test_usage_and_response_metadata(gem: Gem) -> None:
    answer = ChatGem(max_tokens=3).invoke(PROMPT)
    prompt_tokens = len(gem.tokenize_chat([{"role": "user", "content": PROMPT}]))
    assert answer.usage_metadata == {
        "input_tokens": prompt_tokens,
        "output_tokens": 3,
        "total_tokens": prompt_tokens + 3,
    }
    assert answer.response_metadata["model_name"] == "gem-tiny"
    assert answer.response_metadata["finish_reason"] == "length"


def test_one_chunk_carries_usage_and_response_metadata() -> None:
    chunks = list(ChatGem(max_tokens=5).stream(PROMPT))
    assert sum(bool(chunk.usage_metadata) for chunk in chunks) == 1
    assert sum("model_name" in chunk.response_metadata for chunk in chunks) == 1
    assert sum("finish_reason" in chunk.response_metadata for chunk in chunks) == 1
    assert chunks[-1].chunk_position == "last"
    whole = sum(chunks[1:], start=chunks[0])
    assert isinstance(whole, AIMessageChunk)
    assert whole.usage_metadata == ChatGem(max_tokens=5).invoke(PROMPT).usage_metadata


def test_usage_of_a_list_of_prompts() -> None:
    result = GemLLM(max_tokens=3).generate(["def f", "class"])
    rows = [row[0].generation_info for row in result.generations]
    assert [row["finish_reason"] for row in rows] == ["length", "length"]
    total = sum(row["usage"]["total_tokens"] for row in rows)
    assert result.llm_output == {
        "model_name": "gem-tiny",
        "token_usage": {
            "prompt_tokens": total - 6,
            "completion_tokens": 6,
            "total_tokens": total,
        },
    }


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_callbacks_receive_every_token_once(adapter: Any) -> None:
    model = adapter(max_tokens=6)
    for method in ("stream", "astream"):
        handler = RecordingHandler()
        config = {"callbacks": [handler]}
        if method == "stream":
            pieces = [text_of(piece) for piece in model.stream(PROMPT, config)]
        else:
            pieces = [text_of(piece) async for piece in model.astream(PROMPT, config)]
        assert "".join(handler.pieces) == "".join(pieces)
        assert len(handler.ends) == 1


def test_streaming_inside_invoke() -> None:
    handler = RecordingHandler()
    answer = ChatGem(max_tokens=6, streaming=True).invoke(PROMPT, {"callbacks": [handler]})
    assert "".join(handler.pieces) == answer.content == ChatGem(max_tokens=6).invoke(PROMPT).content
    assert ChatGem(max_tokens=6).invoke(PROMPT, stream=True).content == answer.content


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_traces_name_the_model(adapter: Any) -> None:
    model = adapter(temperature=0.5, max_tokens=7, stop=["a"])
    params = model._get_ls_params(stop=["b"])
    assert params["ls_provider"] == "gem"
    assert params["ls_model_name"] == "gem-tiny"
    assert params["ls_model_type"] == ("chat" if adapter is ChatGem else "llm")
    assert params["ls_temperature"] == 0.5
    assert params["ls_max_tokens"] == 7
    assert params["ls_stop"] == ["a", "b"]
    assert model._get_ls_params(model="other", max_tokens=9)["ls_model_name"] == "other"
    assert "langchain-gem" in str(model.metadata)  # under a name that has changed
    assert model._identifying_params["temperature"] == 0.5
