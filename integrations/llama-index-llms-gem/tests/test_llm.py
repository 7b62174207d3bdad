"""`GemLLM`: completion, chat, streaming, settings, usage and callbacks."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import helpers
import pytest
from contract import Contract
from llama_index.core.base.llms.types import CachePoint, ImageBlock, TextBlock, ThinkingBlock
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    LlamaDebugHandler,
    TokenCountingHandler,
)
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.gem import GemLLM

from gem_rag import Gem, Generation, InputError

PROMPT = "Return the"
QUESTION = [ChatMessage(role="user", content="What does open return?")]
OPENAI_QUESTION = [{"role": "user", "content": "What does open return?"}]


@pytest.fixture
def llm(gem: Gem) -> GemLLM:
    return GemLLM(gem, max_tokens=12)


class TestContract(Contract):
    adapter = GemLLM
    base = LLM
    blocking = "generate"
    event = CBEventType.LLM
    settings = {  # noqa: RUF012
        "engine": "transformers",
        "model_kwargs": {"truncation": "windows"},
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "stop": ["\n"],
        "seed": 4,
        "system_prompt": "Be brief.",
    }

    def use(self, adapter: Any, text: str) -> str:
        return str(adapter.complete(text, max_tokens=8))

    async def ause(self, adapter: Any, text: str) -> str:
        return str(await adapter.acomplete(text, max_tokens=8))

    def fake_result(self, gem: Gem) -> Any:
        return [Generation("", (), "stop", prompt_tokens=1)]


# -- metadata ----------------------------------------------------------------------------------


def test_metadata_comes_from_the_model(chat_folder: Path, bare_folder: Path) -> None:
    metadata = GemLLM(chat_folder).metadata
    assert metadata.context_window == 1024
    assert metadata.num_output == 256
    assert metadata.model_name == str(chat_folder)
    assert metadata.is_chat_model
    assert metadata.is_function_calling_model
    assert not GemLLM(bare_folder).metadata.is_chat_model


def test_most_of_a_small_context_is_left_to_passages(bare_folder: Path, tmp_path: Path) -> None:
    small = shutil.copytree(bare_folder, tmp_path / "small")
    helpers.edit_json(small / "config.json", max_position_embeddings=256)
    assert GemLLM(small).metadata.context_window == 256
    assert GemLLM(small).metadata.num_output == 64
    assert GemLLM(small, max_tokens=12).metadata.num_output == 12


def test_callbacks_receive_no_model_kwargs(gem: Gem) -> None:
    payload = GemLLM("gem-tiny", model_kwargs={"token": "secret"}).to_payload()
    assert payload["model_name"] == "gem-tiny"
    assert "secret" not in str(payload)


# -- completion --------------------------------------------------------------------------------


async def test_complete_gives_what_the_model_generates(llm: GemLLM, gem: Gem) -> None:
    (expected,) = gem.generate([PROMPT], max_tokens=12)
    assert llm.complete(PROMPT).text == expected.text
    assert (await llm.acomplete(PROMPT)).text == expected.text


async def test_streams_yield_the_text_so_far_and_the_delta(llm: GemLLM) -> None:
    expected = llm.complete(PROMPT)
    responses = list(llm.stream_complete(PROMPT))
    assert len(responses) > 2
    text = ""
    for response in responses:
        text += response.delta or ""
        assert response.text == text
    assert text == expected.text
    assert responses[-1].raw == expected.raw
    assert [r async for r in await llm.astream_complete(PROMPT)] == responses


async def test_completion_to_prompt_applies_unless_formatted(gem: Gem) -> None:
    llm = GemLLM(gem, max_tokens=8, completion_to_prompt=lambda prompt: f"def {prompt}(")
    formatted, (plain,) = llm.complete("open"), gem.generate(["def open("], max_tokens=8)
    assert formatted.text == plain.text
    assert llm.complete("def open(", formatted=True).text == plain.text
    assert list(llm.stream_complete("open"))[-1].text == plain.text
    assert (await llm.acomplete("open")).text == plain.text


def test_stop_strings_cross_token_boundaries(llm: GemLLM) -> None:
    whole = llm.complete(PROMPT).text
    stop = whole[3:6]  # from within one word into the next
    expected = whole[: whole.index(stop)]
    assert llm.complete(PROMPT, stop=[stop]).text == expected
    assert list(llm.stream_complete(PROMPT, stop=[stop]))[-1].text == expected
    assert GemLLM(max_tokens=12, stop=[stop]).complete(PROMPT).text == expected


# -- chat --------------------------------------------------------------------------------------


async def test_chat_gives_what_the_model_answers(llm: GemLLM, gem: Gem) -> None:
    expected = gem.chat(OPENAI_QUESTION, max_tokens=12)
    response = llm.chat(QUESTION)
    assert response.message == ChatMessage(role="assistant", content=expected.text)
    assert (await llm.achat(QUESTION)) == response
    responses = list(llm.stream_chat(QUESTION))
    assert len(responses) > 2
    assert responses[-1].message == response.message
    assert "".join(r.delta or "" for r in responses) == expected.text
    assert [r async for r in await llm.astream_chat(QUESTION)] == responses


def test_a_model_without_a_template_chats(bare_folder: Path) -> None:
    llm = GemLLM(bare_folder, max_tokens=6)
    expected = llm.gem.chat(OPENAI_QUESTION, max_tokens=6)
    assert llm.chat(QUESTION).message.content == expected.text
    assert list(llm.stream_chat(QUESTION))[-1].message.content == expected.text


def test_every_role_of_llama_index_is_accepted(llm: GemLLM, gem: Gem) -> None:
    roles = [role for role in MessageRole if role is not MessageRole.ASSISTANT]
    llm.chat([ChatMessage(role=role, content="Say it.") for role in roles])
    developer = [ChatMessage(role="developer", content="Be brief."), *QUESTION]
    system = [{"role": "system", "content": "Be brief."}, *OPENAI_QUESTION]
    assert llm.chat(developer).message.content == gem.chat(system, max_tokens=12).text


def test_text_blocks_are_joined_and_thinking_is_dropped(llm: GemLLM) -> None:
    blocks = [
        ThinkingBlock(content="hm"),
        TextBlock(text="What does "),
        CachePoint(cache_control={"type": "ephemeral"}),  # type: ignore[arg-type]
        TextBlock(text="open return?"),
    ]
    message = ChatMessage(role="user", blocks=blocks)
    assert llm.chat([message]).message == llm.chat(QUESTION).message


def test_other_media_are_refused_by_name(llm: GemLLM) -> None:
    image = ImageBlock(url="https://example.org/x.png")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="image"):
        llm.chat([ChatMessage(role="user", blocks=[image])])


def test_prompts_of_llama_index_are_predicted(gem: Gem) -> None:
    llm = GemLLM(gem, max_tokens=8, system_prompt="Files.")
    reply = gem.chat(
        [
            {"role": "system", "content": "Files."},
            {"role": "user", "content": "What does open return?"},
        ],
        max_tokens=8,
    )
    prompt = PromptTemplate("What does {name} return?")
    assert llm.predict(prompt, name="open") == reply.text
    assert "".join(llm.stream(prompt, name="open")) == reply.text


# -- settings, usage and callbacks -------------------------------------------------------------


def test_settings_of_a_call_take_precedence(gem: Gem) -> None:
    llm = GemLLM(gem, max_tokens=4, temperature=2.0, seed=1)
    assert llm.complete(PROMPT, temperature=0.0, max_tokens=12) == GemLLM(
        gem, max_tokens=12
    ).complete(PROMPT)
    assert llm.complete(PROMPT) == llm.complete(PROMPT, max_tokens=None)
    assert llm.complete(PROMPT, max_tokens=12) == llm.complete(PROMPT, max_tokens=12, seed=1)
    texts = {llm.complete(PROMPT, max_tokens=12, seed=seed).text for seed in range(6)}
    assert len(texts) > 1


async def test_what_ragas_asks_for_is_given(gem: Gem) -> None:
    """Its wrapper names one answer, and stop strings that there are not, in each call."""
    asked = {"n": 1, "temperature": 0.01, "stop": None}
    llm = GemLLM(gem, max_tokens=12, seed=0)
    expected = llm.complete(PROMPT, temperature=0.01)
    assert llm.complete(PROMPT, **asked) == await llm.acomplete(PROMPT, **asked) == expected
    with pytest.raises(InputError, match="n=3 is not supported"):
        llm.complete(PROMPT, **{**asked, "n": 3})


def test_an_unknown_setting_is_named(llm: GemLLM) -> None:
    with pytest.raises(InputError, match="temprature"):
        llm.complete(PROMPT, temprature=1)
    with pytest.raises(InputError, match="temprature"):
        list(llm.stream_chat(QUESTION, temprature=1))


def test_usage_is_counted_by_the_models_tokenizer(llm: GemLLM, gem: Gem) -> None:
    (expected,) = gem.generate([PROMPT], max_tokens=12)
    prompt, completion = gem.count_tokens(PROMPT), len(expected.tokens)
    raw = llm.complete(PROMPT).raw
    assert raw["finish_reason"] == expected.finish_reason
    assert raw["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    assert llm.chat(QUESTION).raw["usage"]["prompt_tokens"] == len(
        gem.tokenize_chat(OPENAI_QUESTION)
    )


async def test_llama_indexs_token_counter_sees_the_usage(gem: Gem) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: [])  # counts nothing itself
    llm = GemLLM(gem, max_tokens=12, callback_manager=CallbackManager([counter]))
    usage = llm.chat(QUESTION).raw["usage"]
    list(llm.stream_chat(QUESTION))
    await llm.achat(QUESTION)
    _ = [r async for r in await llm.astream_chat(QUESTION)]
    assert [e.prompt_token_count for e in counter.llm_token_counts] == [usage["prompt_tokens"]] * 4
    assert counter.completion_llm_token_count == 4 * usage["completion_tokens"]


async def test_callbacks_are_called_once_by_every_method(gem: Gem) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    llm = GemLLM(gem, max_tokens=4, callback_manager=CallbackManager([handler]))
    llm.complete(PROMPT)
    list(llm.stream_complete(PROMPT))
    await llm.acomplete(PROMPT)
    _ = [r async for r in await llm.astream_complete(PROMPT)]
    llm.chat(QUESTION)
    list(llm.stream_chat(QUESTION))
    await llm.achat(QUESTION)
    _ = [r async for r in await llm.astream_chat(QUESTION)]
    pairs = handler.get_event_pairs(CBEventType.LLM)
    assert [len(pair) for pair in pairs] == [2] * 8  # once each: none calls another


async def test_an_abandoned_stream_frees_the_model(llm: GemLLM) -> None:
    for response in llm.stream_chat(QUESTION):
        assert response.delta
        break
    stream = await llm.astream_chat(QUESTION)
    async for response in stream:
        assert response.delta
        break
    await stream.aclose()
    assert (await llm.acomplete(PROMPT)).text == llm.complete(PROMPT).text


async def test_a_cancelled_stream_is_closed(gem: Gem, monkeypatch: pytest.MonkeyPatch) -> None:
    started, proceed, closed = threading.Event(), threading.Event(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        try:
            started.set()
            assert proceed.wait(timeout=60)
            yield "text"
        finally:
            closed.set()

    async def listen() -> None:
        async for _ in await GemLLM(gem).astream_complete(PROMPT):
            pass

    monkeypatch.setattr(gem, "stream", slow)
    task = asyncio.create_task(listen())
    while not started.is_set() and not task.done():
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0.01)
    proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()
