"""Streams served over HTTP: clients take turns token by token, and one that leaves ends its own.

Passes of the model are held until what a test waits for has come, and counted; no time is measured.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from langchain_gem import ChatGem

from gem_rag import Gem

TOKENS = 300
ENDLESS = {"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": TOKENS}

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


class App:
    """Streams what `ChatGem` says as server-sent events.

    Attributes:
        sent: The question of each event, in the order in which they were sent.
        asked: How many questions have come.
        left: Whether a client has closed its connection before the end.
        ended: Whether a stream has ended.
    """

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.asked = 0
        self.left, self.ended = threading.Event(), threading.Event()
        self._app = FastAPI()
        self._app.get("/chat")(self._chat)

    async def _chat(self, question: str, tokens: int) -> StreamingResponse:
        self.asked += 1
        return StreamingResponse(self._events(question, tokens), media_type="text/event-stream")

    async def _events(self, question: str, tokens: int) -> AsyncIterator[str]:
        try:
            async for chunk in ChatGem(max_tokens=tokens).astream(question, schema=ENDLESS):
                self.sent.append(question)
                yield f"data: {json.dumps(chunk.text)}\n\n"
        finally:
            self.ended.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def watch() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
            return message

        await self._app(scope, watch, send)


@asynccontextmanager
async def client_of(app: App) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, which runs in the same event loop, as every server of it would."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


@contextmanager
def hold(gem: Gem, until: Callable[[], Any], after: int = 1) -> Iterator[None]:
    """Lets passes of the model after the first ones wait."""
    count = 0

    def wait(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > after:
            until()

    hook = gem._engine._model.register_forward_pre_hook(wait)
    try:
        yield
    finally:
        hook.remove()


def spin_until(true: Callable[[], bool]) -> None:
    for _ in range(30_000):
        if true():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never came")


async def read(client: httpx.AsyncClient, question: str, tokens: int) -> str:
    """All that is said."""
    text = ""
    params: dict[str, str | int] = {"question": question, "tokens": tokens}
    async with client.stream("GET", "/chat", params=params) as response:
        async for line in response.aiter_lines():
            text += json.loads(line.removeprefix("data: ")) if line else ""
    return text


async def test_two_clients_are_answered_together(gem: Gem, passes: list[None]) -> None:
    tokens = 40
    alone = ChatGem(max_tokens=tokens).invoke("Count", schema=ENDLESS).content
    del passes[:]
    app = App()
    async with client_of(app) as client:
        with hold(gem, lambda: spin_until(lambda: app.asked == 2)):
            first, second = await asyncio.gather(
                read(client, "Count", tokens), read(client, "Count again", tokens)
            )
    assert first == alone
    assert second
    # Most of their tokens came from one pass for both, and so their events are mixed.
    assert tokens <= len(passes) < 1.5 * tokens
    changes = sum(one != other for one, other in zip(app.sent, app.sent[1:], strict=False))
    assert changes > tokens / 2


async def test_a_client_that_leaves_ends_its_generation(gem: Gem, passes: list[None]) -> None:
    app = App()

    def wait_for_leaving() -> None:
        assert app.left.wait(30)
        app.ended.wait(0.1)  # the event loop has much to do now; without this it would race it

    async with client_of(app) as client:
        with hold(gem, wait_for_leaving, after=5):
            params: dict[str, str | int] = {"question": "Count", "tokens": TOKENS}
            async with client.stream("GET", "/chat", params=params) as response:
                await anext(response.aiter_lines())
            while not app.ended.is_set():
                await asyncio.sleep(0.001)
        assert len(passes) < TOKENS / 2
        assert len(app.sent) < TOKENS / 2
        assert await read(client, "Count", 8)  # the model is free for others
    assert not gem._engine._batcher._batch.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_times_out_ends_its_generation(
    gem: Gem, passes: list[None], stream: bool
) -> None:
    chat, reached = ChatGem(max_tokens=TOKENS), threading.Event()
    timed_out = threading.Event()

    def wait_for_the_end() -> None:
        reached.set()
        timed_out.wait(30)

    async def answer() -> None:
        if stream:
            async for _ in chat.astream("Count", schema=ENDLESS):
                pass
        else:
            await chat.ainvoke("Count", schema=ENDLESS)

    async def expire(limit: asyncio.Timeout) -> None:
        while not reached.is_set():
            await asyncio.sleep(0.001)
        limit.reschedule(asyncio.get_running_loop().time())
        asyncio.get_running_loop().call_later(0.01, timed_out.set)

    async def answer_in_time() -> None:
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as tasks:
            tasks.create_task(expire(limit))
            await answer()

    with hold(gem, wait_for_the_end, after=5), pytest.raises(TimeoutError):
        await answer_in_time()
    await chat.ainvoke("Hello", max_tokens=1)  # in a pass after the one that was held
    assert len(passes) < 10
