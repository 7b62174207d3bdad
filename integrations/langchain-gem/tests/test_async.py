"""Asynchronous calls run in threads: the event loop is not blocked, and calls are concurrent.

Events and barriers decide, not time: with a blocked loop, or calls that run one after another, they
would time out.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_gem import ChatGem, GemEmbeddings, GemLLM, GemRetriever
from standard import index_folder

from gem_rag import Gem

PROMPTS = [f"What is a list of {number} items?" for number in range(8)]
CALLS = {
    "embed_documents": lambda: GemEmbeddings().aembed_documents(["a text"] * 40),
    "embed_queries": lambda: GemEmbeddings().aembed_query("a text"),
    "sample_replies": lambda: ChatGem(max_tokens=2).ainvoke("Hello"),
    "stream_chat": lambda: anext(ChatGem(max_tokens=2).astream("Hello")),
    "generate": lambda: GemLLM(max_tokens=2).ainvoke("Hello"),
    "stream": lambda: anext(GemLLM(max_tokens=2).astream("Hello")),
}


@pytest.mark.parametrize("name", CALLS)
async def test_the_event_loop_is_not_blocked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started, loop_ran, original = threading.Event(), threading.Event(), getattr(Gem, name)

    def wait(*args: Any, **kwargs: Any) -> Any:
        started.set()
        assert loop_ran.wait(20), "the event loop was blocked while the model was running"
        return original(*args, **kwargs)

    monkeypatch.setattr(Gem, name, wait)
    call = asyncio.ensure_future(CALLS[name]())
    while not started.is_set():
        assert not call.done(), f"the call does not use Gem.{name}"
        await asyncio.sleep(0.001)
    loop_ran.set()
    assert await call


async def test_a_search_runs_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    original = Gem.embed_queries
    monkeypatch.setattr(
        Gem,
        "embed_queries",
        lambda *args, **kw: threads.append(threading.current_thread()) or original(*args, **kw),
    )
    assert await GemRetriever(index=index_folder()).ainvoke("a file")
    assert threads != [threading.main_thread()]


@pytest.mark.parametrize("name", ["sample_replies", "generate"])
async def test_calls_are_concurrent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier, original = threading.Barrier(24, timeout=20), getattr(Gem, name)

    def meet(*args: Any, **kwargs: Any) -> Any:
        barrier.wait()
        return original(*args, **kwargs)

    monkeypatch.setattr(Gem, name, meet)
    adapter = ChatGem(max_tokens=2) if name == "sample_replies" else GemLLM(max_tokens=2)
    await asyncio.gather(*(adapter.ainvoke("Hello") for _ in range(24)))


async def test_concurrent_answers_equal_sequential_ones() -> None:
    chat, llm = ChatGem(max_tokens=12), GemLLM(max_tokens=12)
    sequential = [chat.invoke(prompt).content for prompt in PROMPTS]
    answers = await asyncio.gather(*(chat.ainvoke(prompt) for prompt in PROMPTS))
    assert [answer.content for answer in answers] == sequential
    assert [answer.content for answer in chat.batch(PROMPTS)] == sequential
    assert [answer.content for answer in await chat.abatch(PROMPTS)] == sequential
    sequential = [llm.invoke(prompt) for prompt in PROMPTS]
    assert await asyncio.gather(*(llm.ainvoke(prompt) for prompt in PROMPTS)) == sequential
    assert llm.batch(PROMPTS) == await llm.abatch(PROMPTS) == sequential


async def test_an_abandoned_stream_ends() -> None:
    chat = ChatGem()
    stream = chat.astream("Hello")
    first = await anext(stream)
    await stream.aclose()
    assert (await chat.ainvoke("Hello")).content.startswith(first.content)
