"""Asynchronous calls wait in threads: the event loop goes on turning, and calls run together.

What happens is decided by events and barriers, not by time: a loop that is blocked, or calls that
wait for one another, would leave them waiting to their end.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_gem import ChatGem, GemEmbeddings, GemLLM, GemRetriever
from standard import filled_index

from gem_rag import Gem

PROMPTS = [f"What is a list of {number} items?" for number in range(8)]
CALLS = {
    "embed_documents": lambda: GemEmbeddings().aembed_documents(["a text"] * 40),
    "embed_queries": lambda: GemEmbeddings().aembed_query("a text"),
    "chat": lambda: ChatGem(max_tokens=2).ainvoke("Hello"),
    "stream_chat": lambda: anext(ChatGem(max_tokens=2).astream("Hello")),
    "generate": lambda: GemLLM(max_tokens=2).ainvoke("Hello"),
    "stream": lambda: anext(GemLLM(max_tokens=2).astream("Hello")),
}


@pytest.mark.parametrize("name", CALLS)
async def test_the_loop_goes_on_turning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    began, turned, original = threading.Event(), threading.Event(), getattr(Gem, name)

    def waits(*args: Any, **kwargs: Any) -> Any:
        began.set()
        assert turned.wait(20), "the loop did not turn while the model was at work"
        return original(*args, **kwargs)

    monkeypatch.setattr(Gem, name, waits)
    call = asyncio.ensure_future(CALLS[name]())
    while not began.is_set():
        await asyncio.sleep(0.001)
    turned.set()
    assert await call


async def test_a_search_leaves_the_loop_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = []
    original = Gem.embed_queries
    monkeypatch.setattr(
        Gem,
        "embed_queries",
        lambda *args, **kw: thread.append(threading.current_thread()) or original(*args, **kw),
    )
    assert await GemRetriever(index=filled_index()).ainvoke("a file")
    assert thread != [threading.main_thread()]


@pytest.mark.parametrize("name", ["chat", "generate"])
async def test_calls_wait_for_the_engine_together(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, original = threading.Barrier(24, timeout=20), getattr(Gem, name)

    def meets(*args: Any, **kwargs: Any) -> Any:
        together.wait()
        return original(*args, **kwargs)

    monkeypatch.setattr(Gem, name, meets)
    adapter = ChatGem(max_tokens=2) if name == "chat" else GemLLM(max_tokens=2)
    await asyncio.gather(*(adapter.ainvoke("Hello") for _ in range(24)))


async def test_concurrent_answers_are_those_of_one_by_one() -> None:
    chat, llm = ChatGem(max_tokens=12), GemLLM(max_tokens=12)
    alone = [chat.invoke(prompt).content for prompt in PROMPTS]
    answers = await asyncio.gather(*(chat.ainvoke(prompt) for prompt in PROMPTS))
    assert [answer.content for answer in answers] == alone
    assert [answer.content for answer in chat.batch(PROMPTS)] == alone
    assert [answer.content for answer in await chat.abatch(PROMPTS)] == alone
    alone = [llm.invoke(prompt) for prompt in PROMPTS]
    assert await asyncio.gather(*(llm.ainvoke(prompt) for prompt in PROMPTS)) == alone
    assert llm.batch(PROMPTS) == await llm.abatch(PROMPTS) == alone


async def test_a_stream_that_is_left_ends() -> None:
    chat = ChatGem()
    stream = chat.astream("Hello")
    first = await anext(stream)
    await stream.aclose()
    assert (await chat.ainvoke("Hello")).content.startswith(first.content)
