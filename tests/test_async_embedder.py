"""`AsyncEmbedder` over a stand-in for vLLM's client: a failed batch, a lost engine, a shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gem_rag.core.config import GemConfig
from gem_rag.core.layout import Row
from gem_rag.engines.vllm.async_embedder import AsyncEmbedder
from gem_rag.engines.vllm.rpc import WorkerCapabilities
from gem_rag.errors import GemError
from gem_rag.server.vllm_plugin import _drain_first

ROWS = [Row.whole([number] * 4) for number in range(40)]
CHECKPOINT: Any = SimpleNamespace(config=GemConfig(k=1))
# Batches of four rows of five tokens.
CAPABILITIES = WorkerCapabilities(
    hidden=2, max_text_tokens=100, max_step_tokens=5, free_bytes=40, bytes_per_token=1
)


class FakeClient:
    """Embeds a row as its first token, twice; `failures` are raised instead, one a call."""

    def __init__(self, *failures: Exception | dict[str, Any]) -> None:
        self.failures = list(failures)
        self.calls: list[int] = []
        self.errored = False
        self.dead_error = RuntimeError("dead")
        self.output_processor = SimpleNamespace(has_unfinished_requests=lambda: False)
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def collective_rpc(self, method: str, args: tuple[Any]) -> list[dict[str, Any]]:
        [rows] = args
        self.calls.append(len(rows))
        await self.may_go_on.wait()
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, Exception):
            raise failure
        if failure is not None:
            return [failure]
        vectors = np.array([[ids[0]] * 2 for ids, _ in rows], np.float32)
        return [{"vectors": vectors.tobytes(), "shape": list(vectors.shape)}]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


class Shutdown(list[float | None]):
    """The timeouts that an engine was shut down with."""

    def __call__(self, timeout: float | None) -> None:
        self.append(timeout)


def embedder(client: FakeClient) -> AsyncEmbedder:
    return AsyncEmbedder(client, CHECKPOINT, CAPABILITIES, share=1)


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("index out of range"), {"error": "index out of range"}],
    ids=["raised", "answered"],
)
def test_an_unexpected_failure_fails_its_batch_and_nothing_else(failure: Any) -> None:
    async def test() -> None:
        embeds = embedder(FakeClient(failure))
        with pytest.raises(GemError, match="index out of range"):
            await embeds.embed(ROWS[:2])
        vectors = await embeds.embed(ROWS[:6])
        assert vectors[:, 0].tolist() == [0, 1, 2, 3, 4, 5]

    run(test)


def test_an_engine_that_is_lost_ends_embeddings() -> None:
    async def test() -> None:
        client = FakeClient(RuntimeError("lost"))
        client.errored = True
        embeds = embedder(client)
        waiting = asyncio.ensure_future(embeds.embed(ROWS))
        for call in (waiting, embeds.embed(ROWS[:1])):
            with pytest.raises(GemError, match="engine has died"):
                await call
        with pytest.raises(GemError, match="engine has died"):
            await embeds.embed(ROWS[:1])

    run(test)


def test_a_call_that_is_cancelled_is_not_embedded_further() -> None:
    async def test() -> None:
        client = FakeClient()
        embeds = embedder(client)
        client.may_go_on.clear()
        large = asyncio.ensure_future(embeds.embed(ROWS))
        await asyncio.sleep(0)
        small = asyncio.ensure_future(embeds.embed(ROWS[:1]))
        while not client.calls:
            await asyncio.sleep(0)
        large.cancel()
        await asyncio.sleep(0)
        client.may_go_on.set()
        assert (await small)[0, 0] == 0
        assert sum(client.calls) <= 6  # the batch under way, and the small call

    run(test)


def test_a_shutdown_waits_for_what_was_asked_and_refuses_what_comes() -> None:
    async def test() -> None:
        client, stopped = FakeClient(), Shutdown()
        embeds = embedder(client)
        client.may_go_on.clear()
        shutdown = _drain_first(embeds, stopped)
        waiting = asyncio.ensure_future(embeds.embed(ROWS))
        while not client.calls:
            await asyncio.sleep(0)
        stopping = asyncio.get_running_loop().run_in_executor(None, shutdown, 30.0)
        while embeds._refusal is None:
            await asyncio.sleep(0.001)
        with pytest.raises(GemError, match="the server is shutting down"):
            await embeds.embed(ROWS[:1])
        assert not stopped
        client.may_go_on.set()
        assert (await waiting)[:, 0].tolist() == list(range(40))
        await stopping
        assert 0 < (stopped[0] or 0) < 30

    run(test)


@pytest.mark.parametrize("timeout", [None, 0])
def test_a_shutdown_without_time_waits_for_nobody(timeout: float | None) -> None:
    async def test() -> None:
        client, stopped = FakeClient(), Shutdown()
        embeds = embedder(client)
        client.may_go_on.clear()
        waiting = asyncio.ensure_future(embeds.embed(ROWS))
        while not client.calls:
            await asyncio.sleep(0)
        shutdown = _drain_first(embeds, stopped)
        await asyncio.get_running_loop().run_in_executor(None, shutdown, timeout)
        assert stopped == [timeout]
        client.failures.append(RuntimeError("Call to collective_rpc failed: Server shutting down"))
        client.may_go_on.set()
        with pytest.raises(GemError, match="the server is shutting down"):
            await waiting

    run(test)
