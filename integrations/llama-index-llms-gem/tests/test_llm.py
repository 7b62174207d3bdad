"""`GemLLM` chats and completes, at once and in pieces, and says what it took."""

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

from gem_rag.errors import InputError
from gem_rag.generation.sampling import Generation
from gem_rag.model import Gem

PROMPT = "Return the"
QUESTION = [ChatMessage(role="user", content="What does open return?")]
ASKED = [{"role": "user", "content": "What does open return?"}]


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
        "model_kwargs": {"overlong": "windows"},
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

    def answered(self, gem: Gem) -> Any:
        return [Generation("", (), "stop", prompt_tokens=1)]


# -- what the model says of itself -------------------------------------------------------------


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


def test_what_callbacks_are_told_holds_no_model_kwargs(gem: Gem) -> None:
    payload = GemLLM("gem-tiny", model_kwargs={"token": "secret"}).to_payload()
    assert payload["model_name"] == "gem-tiny"
    assert "secret" not in str(payload)


# -- completing --------------------------------------------------------------------------------


async def test_complete_gives_what_the_model_generates(llm: GemLLM, gem: Gem) -> None:
    (wanted,) = gem.generate([PROMPT], max_tokens=12)
    assert llm.complete(PROMPT).text == wanted.text
    assert (await llm.acomplete(PROMPT)).text == wanted.text


async def test_streams_hold_the_text_so_far_and_what_is_new(llm: GemLLM) -> None:
    wanted = llm.complete(PROMPT)
    responses = list(llm.stream_complete(PROMPT))
    assert len(responses) > 2
    said = ""
    for response in responses:
        said += response.delta or ""
        assert response.text == said
    assert said == wanted.text
    assert responses[-1].raw == wanted.raw
    assert [r async for r in await llm.astream_complete(PROMPT)] == responses


async def test_a_prompt_is_formed_unless_it_is_formatted(gem: Gem) -> None:
    llm = GemLLM(gem, max_tokens=8, completion_to_prompt=lambda prompt: f"def {prompt}(")
    formed, (plain,) = llm.complete("open"), gem.generate(["def open("], max_tokens=8)
    assert formed.text == plain.text
    assert llm.complete("def open(", formatted=True).text == plain.text
    assert list(llm.stream_complete("open"))[-1].text == plain.text
    assert (await llm.acomplete("open")).text == plain.text


def test_a_stop_string_ends_a_text_wherever_tokens_end(llm: GemLLM) -> None:
    whole = llm.complete(PROMPT).text
    stop = whole[3:6]  # from within one word into the next
    wanted = whole[: whole.index(stop)]
    assert llm.complete(PROMPT, stop=[stop]).text == wanted
    assert list(llm.stream_complete(PROMPT, stop=[stop]))[-1].text == wanted
    assert GemLLM(max_tokens=12, stop=[stop]).complete(PROMPT).text == wanted


# -- chatting ----------------------------------------------------------------------------------


async def test_chat_gives_what_the_model_answers(llm: GemLLM, gem: Gem) -> None:
    wanted = gem.chat(ASKED, max_tokens=12)
    response = llm.chat(QUESTION)
    assert response.message == ChatMessage(role="assistant", content=wanted.text)
    assert (await llm.achat(QUESTION)) == response
    responses = list(llm.stream_chat(QUESTION))
    assert len(responses) > 2
    assert responses[-1].message == response.message
    assert "".join(r.delta or "" for r in responses) == wanted.text
    assert [r async for r in await llm.astream_chat(QUESTION)] == responses


def test_a_model_without_a_template_chats(bare_folder: Path) -> None:
    llm = GemLLM(bare_folder, max_tokens=6)
    wanted = llm.gem.chat(ASKED, max_tokens=6)
    assert llm.chat(QUESTION).message.content == wanted.text
    assert list(llm.stream_chat(QUESTION))[-1].message.content == wanted.text


def test_every_role_of_llama_index_is_taken(llm: GemLLM, gem: Gem) -> None:
    roles = [role for role in MessageRole if role is not MessageRole.ASSISTANT]
    llm.chat([ChatMessage(role=role, content="Say it.") for role in roles])
    developer = [ChatMessage(role="developer", content="Be brief."), *QUESTION]
    system = [{"role": "system", "content": "Be brief."}, *ASKED]
    assert llm.chat(developer).message.content == gem.chat(system, max_tokens=12).text


def test_texts_are_read_whole_and_thoughts_left_out(llm: GemLLM) -> None:
    blocks = [
        ThinkingBlock(content="hm"),
        TextBlock(text="What does "),
        CachePoint(cache_control={"type": "ephemeral"}),  # type: ignore[arg-type]
        TextBlock(text="open return?"),
    ]
    asked = ChatMessage(role="user", blocks=blocks)
    assert llm.chat([asked]).message == llm.chat(QUESTION).message


def test_other_media_are_refused_by_name(llm: GemLLM) -> None:
    image = ImageBlock(url="https://example.org/x.png")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="image"):
        llm.chat([ChatMessage(role="user", blocks=[image])])


def test_prompts_of_llama_index_are_predicted(gem: Gem) -> None:
    llm = GemLLM(gem, max_tokens=8, system_prompt="Files.")
    said = gem.chat(
        [
            {"role": "system", "content": "Files."},
            {"role": "user", "content": "What does open return?"},
        ],
        max_tokens=8,
    )
    prompt = PromptTemplate("What does {name} return?")
    assert llm.predict(prompt, name="open") == said.text
    assert "".join(llm.stream(prompt, name="open")) == said.text


# -- settings, usage and callbacks -------------------------------------------------------------


def test_a_calls_settings_win(gem: Gem) -> None:
    llm = GemLLM(gem, max_tokens=4, temperature=2.0, seed=1)
    assert llm.complete(PROMPT, temperature=0.0, max_tokens=12) == GemLLM(
        gem, max_tokens=12
    ).complete(PROMPT)
    assert llm.complete(PROMPT) == llm.complete(PROMPT, max_tokens=None)
    assert llm.complete(PROMPT, max_tokens=12) == llm.complete(PROMPT, max_tokens=12, seed=1)
    said = {llm.complete(PROMPT, max_tokens=12, seed=seed).text for seed in range(6)}
    assert len(said) > 1


def test_an_unknown_setting_is_named(llm: GemLLM) -> None:
    with pytest.raises(InputError, match="temprature"):
        llm.complete(PROMPT, temprature=1)
    with pytest.raises(InputError, match="temprature"):
        list(llm.stream_chat(QUESTION, temprature=1))


def test_usage_is_counted_by_the_models_tokenizer(llm: GemLLM, gem: Gem) -> None:
    (wanted,) = gem.generate([PROMPT], max_tokens=12)
    prompt, completion = gem.count_tokens(PROMPT), len(wanted.tokens)
    raw = llm.complete(PROMPT).raw
    assert raw["finish_reason"] == wanted.finish_reason
    assert raw["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    assert llm.chat(QUESTION).raw["usage"]["prompt_tokens"] == len(gem.encode_chat(ASKED))


async def test_llama_indexs_token_counter_sees_the_usage(gem: Gem) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: [])  # counts nothing itself
    llm = GemLLM(gem, max_tokens=12, callback_manager=CallbackManager([counter]))
    usage = llm.chat(QUESTION).raw["usage"]
    list(llm.stream_chat(QUESTION))
    await llm.achat(QUESTION)
    _ = [r async for r in await llm.astream_chat(QUESTION)]
    assert [e.prompt_token_count for e in counter.llm_token_counts] == [usage["prompt_tokens"]] * 4
    assert counter.completion_llm_token_count == 4 * usage["completion_tokens"]


async def test_callbacks_hear_of_every_way_to_ask(gem: Gem) -> None:
    heard = LlamaDebugHandler(print_trace_on_end=False)
    llm = GemLLM(gem, max_tokens=4, callback_manager=CallbackManager([heard]))
    llm.complete(PROMPT)
    list(llm.stream_complete(PROMPT))
    await llm.acomplete(PROMPT)
    _ = [r async for r in await llm.astream_complete(PROMPT)]
    llm.chat(QUESTION)
    list(llm.stream_chat(QUESTION))
    await llm.achat(QUESTION)
    _ = [r async for r in await llm.astream_chat(QUESTION)]
    pairs = heard.get_event_pairs(CBEventType.LLM)
    assert [len(pair) for pair in pairs] == [2] * 8  # once each: none calls another


async def test_a_stream_that_is_left_leaves_the_model_free(llm: GemLLM) -> None:
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
    begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        try:
            begun.set()
            assert go_on.wait(timeout=60)
            yield "text"
        finally:
            closed.set()

    async def listen() -> None:
        async for _ in await GemLLM(gem).astream_complete(PROMPT):
            pass

    monkeypatch.setattr(gem, "stream", slow)
    task = asyncio.create_task(listen())
    while not begun.is_set() and not task.done():
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0.01)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()
