"""`ClientEngine`: a model that vLLM's own server runs, as an engine for our code in its process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any

from gem_rag.core.arrays import FloatArray
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.layout import Row
from gem_rag.engines.vllm.async_embedder import AsyncEmbedder
from gem_rag.engines.vllm.driver import Listener
from gem_rag.engines.vllm.engine_args import engine_died, short_reason
from gem_rag.engines.vllm.vllm_engine import VllmEngine
from gem_rag.errors import InputError


class ClientEngine(VllmEngine):
    """An engine over an `EngineClient` that somebody else runs; made in its event loop, and used
    from other threads.

    checkpoint: what the client runs.
    client: the client.
    embedder: embeds there.
    """

    def __init__(self, checkpoint: Checkpoint, client: Any, embedder: AsyncEmbedder) -> None:
        self._k = checkpoint.config.k
        self._capabilities = embedder.capabilities
        self._driver = _ClientDriver(client, embedder)
        self._describe(checkpoint, client.vllm_config.model_config)


class _ClientDriver:
    """What `Driver` does, by way of a client's event loop."""

    def __init__(self, client: Any, embedder: AsyncEmbedder) -> None:
        self._client, self._embedder = client, embedder
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def embed(self, rows: Sequence[Row]) -> Future[FloatArray]:
        return asyncio.run_coroutine_threadsafe(self._embedder.embed(rows), self._loop)

    def generate(self, prompt: Sequence[int], params: Any, listener: Listener) -> str:
        name = f"gem-rag-{next(self._numbers)}"

        def start() -> None:
            work = self._generate(name, list(prompt), params, listener)
            self._tasks[name] = task = self._loop.create_task(work, name=name)
            task.add_done_callback(lambda _: self._tasks.pop(name))

        self._loop.call_soon_threadsafe(start)
        return name

    def abort(self, name: str) -> None:
        def cancel() -> None:
            if task := self._tasks.get(name):
                task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def close(self) -> None:
        """The client goes on."""

    async def _generate(
        self, name: str, prompt: list[int], params: Any, listener: Listener
    ) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        outputs = self._client.generate({"prompt_token_ids": prompt}, params, name)
        try:
            async with aclosing(outputs):  # which aborts what is not finished
                async for output in outputs:
                    if not listener.receive(output):
                        return
        except EngineDeadError as error:
            listener.fail(engine_died(error))
        except Exception as error:  # vLLM's own checks of the request raise many kinds
            listener.fail(InputError(f"vLLM refuses the request: {short_reason(error)}"))
