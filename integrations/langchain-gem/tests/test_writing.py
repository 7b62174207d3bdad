"""How `ChatGem` and `GemLLM` write: settings, stop strings, streams, figures, callbacks."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_gem import ChatGem, GemLLM

from gem_rag import Gem, InputError

ADAPTERS = [ChatGem, GemLLM]
PROMPT = "Open a file and"


class Heard(BaseCallbackHandler):
    """Notes the pieces and the ends that it hears of."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.ends: list[Any] = []

    def on_llm_new_token(self, token: str, **_: Any) -> None:
        self.pieces.append(token)

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.ends.append(response)


def text(found: Any) -> str:
    return found if isinstance(found, str) else str(found.content)


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_a_stream_joins_to_what_invoke_gives(adapter: Any) -> None:
    made = adapter(max_tokens=12)
    whole = text(made.invoke(PROMPT))
    pieces = [text(piece) for piece in made.stream(PROMPT)]
    assert len(pieces) > 2
    assert "".join(pieces) == whole
    assert [text(piece) async for piece in made.astream(PROMPT)] == pieces
    assert text(await made.ainvoke(PROMPT)) == whole


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_stop_strings_of_adapter_and_call_are_merged(adapter: Any) -> None:
    whole = text(adapter(max_tokens=24).invoke(PROMPT))
    early, late = whole[4:6], whole[8:11]
    for own, given in (([early], [late]), ([late], [early])):
        made = adapter(max_tokens=24, stop=own)
        expected = whole[: whole.index(early)]
        assert text(made.invoke(PROMPT, stop=given)) == expected
        assert text(await made.ainvoke(PROMPT, stop=given)) == expected
        assert "".join(text(piece) for piece in made.stream(PROMPT, stop=given)) == expected
        assert all(text(row) == expected for row in made.batch([PROMPT] * 3, stop=given))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_calls_settings_come_before_the_adapters(adapter: Any) -> None:
    made = adapter(max_tokens=12, temperature=0.0)
    greedy = text(made.invoke(PROMPT))
    assert greedy.startswith(text(made.invoke(PROMPT, max_tokens=2)))
    warm = {"temperature": 2.0, "seed": 1, "top_p": 0.95, "top_k": 500}
    assert text(made.invoke(PROMPT, **warm)) != greedy
    assert text(made.invoke(PROMPT, **warm)) == text(made.bind(**warm).invoke(PROMPT))
    assert text(adapter(max_tokens=12, **warm).invoke(PROMPT, temperature=0.0)) == greedy


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
    made = adapter()
    assert made.get_token_ids("def open():") == gem.encode("def open():")
    assert made.get_num_tokens("def open():") == gem.count_tokens("def open():")
    assert adapter(custom_get_token_ids=lambda _: [1, 2]).get_num_tokens("def") == 2


def test_a_conversation_is_counted_with_its_template(gem: Gem) -> None:
    chat = ChatGem(max_tokens=1)
    read = chat.invoke(PROMPT).usage_metadata["input_tokens"]
    assert chat.get_num_tokens_from_messages([HumanMessage(PROMPT)]) == read

    def add(first: int, second: int) -> int:
        """Add numbers."""
        return first + second

    assert chat.get_num_tokens_from_messages([HumanMessage(PROMPT)], tools=[add]) > read + 10


def test_usage_and_origin_of_an_answer(gem: Gem) -> None:
    answer = ChatGem(max_tokens=3).invoke(PROMPT)
    read = len(gem.encode_chat([{"role": "user", "content": PROMPT}]))
    assert answer.usage_metadata == {
        "input_tokens": read, "output_tokens": 3, "total_tokens": read + 3
    }  # fmt: skip
    assert answer.response_metadata["model_name"] == "gem-tiny"
    assert answer.response_metadata["finish_reason"] == "length"


def test_one_chunk_carries_usage_and_origin() -> None:
    chunks = list(ChatGem(max_tokens=5).stream(PROMPT))
    assert sum(bool(chunk.usage_metadata) for chunk in chunks) == 1
    assert sum("model_name" in chunk.response_metadata for chunk in chunks) == 1
    assert sum("finish_reason" in chunk.response_metadata for chunk in chunks) == 1
    assert chunks[-1].chunk_position == "last"
    whole = sum(chunks[1:], start=chunks[0])
    assert isinstance(whole, AIMessageChunk)
    assert whole.usage_metadata == ChatGem(max_tokens=5).invoke(PROMPT).usage_metadata


def test_figures_of_a_list_of_prompts() -> None:
    result = GemLLM(max_tokens=3).generate(["def f", "class"])
    rows = [row[0].generation_info for row in result.generations]
    assert [row["finish_reason"] for row in rows] == ["length", "length"]
    total = sum(row["usage"]["total_tokens"] for row in rows)
    assert result.llm_output == {
        "model_name": "gem-tiny",
        "token_usage": {
            "prompt_tokens": total - 6, "completion_tokens": 6, "total_tokens": total
        },
    }  # fmt: skip


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_callbacks_hear_every_piece_once(adapter: Any) -> None:
    made = adapter(max_tokens=6)
    for ways in ("stream", "astream"):
        heard = Heard()
        config = {"callbacks": [heard]}
        if ways == "stream":
            pieces = [text(piece) for piece in made.stream(PROMPT, config)]
        else:
            pieces = [text(piece) async for piece in made.astream(PROMPT, config)]
        assert "".join(heard.pieces) == "".join(pieces)
        assert len(heard.ends) == 1


def test_streaming_within_invoke() -> None:
    heard = Heard()
    answer = ChatGem(max_tokens=6, streaming=True).invoke(PROMPT, {"callbacks": [heard]})
    assert "".join(heard.pieces) == answer.content == ChatGem(max_tokens=6).invoke(PROMPT).content
    assert ChatGem(max_tokens=6).invoke(PROMPT, stream=True).content == answer.content


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_traces_say_what_wrote(adapter: Any) -> None:
    made = adapter(temperature=0.5, max_tokens=7, stop=["a"])
    found = made._get_ls_params(stop=["b"])
    assert found["ls_provider"] == "gem"
    assert found["ls_model_name"] == "gem-tiny"
    assert found["ls_model_type"] == ("chat" if adapter is ChatGem else "llm")
    assert found["ls_temperature"] == 0.5
    assert found["ls_max_tokens"] == 7
    assert found["ls_stop"] == ["a", "b"]
    assert made._get_ls_params(model="other", max_tokens=9)["ls_model_name"] == "other"
    assert "langchain-gem" in made.metadata["lc_versions"]
    assert made._identifying_params["temperature"] == 0.5
