"""An `AsyncLLM` that somebody else runs embeds too, beside what it generates."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import SMALL
from served import living_children

import gem_rag
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.core.layout import Row
from gem_rag.engines.vllm.async_embedder import AsyncEmbedder
from gem_rag.engines.vllm.engine_args import WORKER_EXTENSION
from gem_rag.errors import GemError
from gem_rag.model import Gem

TEXTS = ("open a file for reading", "sort a list in place", "x", "def f(a):\n    return a")
CHECKPOINT = open_checkpoint("gem-tiny")


def with_engine(test: Callable[[Any], Awaitable[None]], **arguments: Any) -> None:
    """Run a coroutine on an `AsyncLLM` of gem-tiny."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    async def run() -> None:
        settings = {"enforce_eager": True, "disable_log_stats": True, **SMALL, **arguments}
        args = AsyncEngineArgs(model=str(CHECKPOINT.path), **settings)
        engine = AsyncLLM.from_engine_args(args)
        try:
            await test(engine)
        finally:
            engine.shutdown()

    asyncio.run(run())


async def written(engine: Any, gem: Gem, name: str) -> tuple[int, ...]:
    """Tokens of a greedy continuation."""
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": gem.tokenize("Return the")}
    params = SamplingParams(temperature=0, max_tokens=24)
    async for output in engine.generate(prompt, params, name):
        tokens = tuple(output.outputs[0].token_ids)
    return tokens


def test_many_tasks_embed_and_generate_at_once_until_the_engine_dies(plain_tiny: Gem) -> None:
    rows = [Row.whole(plain_tiny.tokenize(text)) for text in TEXTS]
    wanted = plain_tiny.embed_documents(TEXTS)

    async def test(engine: Any) -> None:
        embedder = await AsyncEmbedder.connect(engine, CHECKPOINT, embed_share=0.5)
        alone = await written(engine, plain_tiny, "alone")
        embeddings = [embedder.embed([rows[i % 4], rows[(i + 1) % 4]]) for i in range(16)]
        texts = [written(engine, plain_tiny, f"beside-{i}") for i in range(16)]
        found = await asyncio.gather(*embeddings, *texts)
        for i, vectors in enumerate(found[:16]):
            assert np.allclose(vectors, wanted[[i % 4, (i + 1) % 4]], atol=1e-4)
        assert all(tokens == alone for tokens in found[16:])
        embedder.close()
        with pytest.raises(GemError, match="closed"):
            await asyncio.wait_for(embedder.embed(rows), 60)
        await those_who_wait_hear_that_the_engine_has_died(engine, plain_tiny)

    with_engine(test, worker_extension_cls=WORKER_EXTENSION)


async def those_who_wait_hear_that_the_engine_has_died(engine: Any, gem: Gem) -> None:
    embedder = await AsyncEmbedder.connect(engine, CHECKPOINT)
    rows = [Row.whole(gem.tokenize("word " * 100))] * 400
    waiting = asyncio.create_task(embedder.embed(rows))
    await embedder.embed(rows[:1])  # by now the first batch is done, and others are not
    kill_engine()
    with pytest.raises(GemError, match="engine has died"):
        await asyncio.wait_for(waiting, 60)
    with pytest.raises(GemError, match="engine has died"):
        await embedder.embed(rows[:1])


def test_an_engine_without_the_extension_is_refused() -> None:
    """Its configuration says so; nothing has to be started."""
    from vllm import EngineArgs

    config = EngineArgs(model=str(CHECKPOINT.path), enforce_eager=True, **SMALL)
    client = SimpleNamespace(vllm_config=config.create_engine_config())
    with pytest.raises(GemError, match="worker_extension_cls='gem_rag"):
        asyncio.run(AsyncEmbedder.connect(client, CHECKPOINT))


def test_a_gem_says_that_its_engine_has_died() -> None:
    gem = gem_rag.load("gem-tiny", engine="vllm", enforce_eager=True, **SMALL)
    stream = gem.stream("Return the", max_tokens=240)
    next(stream)
    kill_engine()
    with pytest.raises(GemError, match="engine has died"):
        list(stream)
    with pytest.raises(GemError, match="engine has died"):
        gem.embed_documents(["x"])
    gem.close()


def kill_engine() -> None:
    """SIGKILL to the vLLM engine process that was started last."""
    engines = living_children(os.getpid(), "EngineCore")
    os.kill(max(engines, key=psutil.Process.create_time).pid, signal.SIGKILL)
