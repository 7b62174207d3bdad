"""Embeddings from an `AsyncLLM` (or any vLLM `EngineClient`) that somebody else runs.

What `vllm serve` and programs built on `AsyncLLM` use; the engine must have been started with the
worker extension (`engine_args.WORKER_EXTENSION`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from gem_rag.core.arrays import FloatArray
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.layout import Row
from gem_rag.engines.vllm import rpc
from gem_rag.engines.vllm.engine_args import (
    WORKER_EXTENSION,
    batch_failed,
    check_supported,
    engine_died,
    shutting_down,
)
from gem_rag.errors import GemError

_POLL_SECONDS = 0.01  # seconds between looks at whether generation has ended
_HEALTH_CHECK_SECONDS = 0.5  # and at whether the engine is alive


class AsyncEmbedder:
    """Coalesces rows of many tasks into batches, and has vLLM embed them between its steps.

    Made by `connect`; for use in the event loop that it was made in.

    Attributes:
        capabilities: What the workers can do.
        max_text_tokens: Most text tokens in one embedding pass.
        dim: Length of an embedding.
    """

    def __init__(
        self,
        client: Any,
        checkpoint: Checkpoint,
        capabilities: rpc.WorkerCapabilities,
        share: float,
    ):
        self._client, self._k = client, checkpoint.config.k
        self.capabilities = capabilities
        self._queue = capabilities.queue(self._k, share)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="gem-rag-embeddings")
        self._refusal: GemError | None = None  # of everything new
        self.max_text_tokens = capabilities.max_text_tokens
        self.dim = checkpoint.config.dim(capabilities.hidden)

    @classmethod
    async def connect(
        cls, client: Any, checkpoint: Checkpoint, embed_share: float = 0.5
    ) -> AsyncEmbedder:
        """Make the engine's workers embedders.

        client: an `AsyncLLM` that runs the checkpoint's model.
        embed_share: of the time, that embeddings may take while text is being generated.

        Raises GemError if the architecture's attention cannot be replaced, or the engine has no
        worker extension.
        """
        check_supported(client.vllm_config)
        if client.vllm_config.parallel_config.worker_extension_cls != WORKER_EXTENSION:
            raise GemError(
                "vLLM's workers cannot embed: start the engine with worker_extension_cls="
                f"{WORKER_EXTENSION!r}"
            )
        answers = await _call(client, rpc.LOAD, str(checkpoint.path), checkpoint.config.k)
        return cls(client, checkpoint, rpc.WorkerCapabilities.of(answers), embed_share)

    async def embed(self, rows: Sequence[Row]) -> FloatArray:
        """Unit vectors, one for each span of the rows, in order: float32 [spans, dim].

        Raises GemError if the engine has died, or cannot hold a row in memory.
        """
        if self._refusal is not None:
            raise self._refusal
        self.capabilities.check(rows, self._k)
        future: Future[FloatArray] = Future()
        self._queue.add(rows, future)
        self._idle.clear()
        self._wake.set()
        return await asyncio.wrap_future(future)

    @property
    def num_waiting(self) -> int:
        """How many rows are waiting to be embedded."""
        return len(self._queue)

    async def drain(self, timeout: float) -> None:
        """Embed what is waiting, for so many seconds at most, and refuse what is new."""
        self._refusal = shutting_down()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)

    def close(self) -> None:
        """Embed nothing more; the engine goes on."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            while True:
                self._idle.set()
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    await self._turn()
        except asyncio.CancelledError:
            self._refusal = self._refusal or GemError("embeddings have been closed")
        except Exception as error:
            self._refusal = self._refusal or engine_died(error)
        self._queue.fail_all(self._refusal)

    async def _turn(self) -> None:
        while self._queue.pause(self._generating()):
            await asyncio.sleep(_POLL_SECONDS)
        batch = self._queue.take(self._generating())
        if not batch.rows:
            return
        try:
            rows = rpc.serialize_rows(batch.rows)
            vectors = rpc.vectors(await _call(self._client, rpc.EMBED, rows))
        except GemError as error:
            self._queue.failed(batch, error)
        except Exception as error:
            lost = await self._is_lost()
            self._queue.failed(
                batch, self._refusal or (engine_died if lost else batch_failed)(error)
            )
            if lost:
                raise
        except asyncio.CancelledError:
            self._queue.failed(batch, GemError("embeddings have been closed"))
            raise
        else:
            self._queue.done(batch, vectors)

    async def _is_lost(self) -> bool:
        """Whether a call failed because the engine did, which its client learns a little later."""
        deadline = time.monotonic() + _HEALTH_CHECK_SECONDS
        while not self._client.errored and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        return bool(self._client.errored)

    def _generating(self) -> bool:
        return bool(self._client.output_processor.has_unfinished_requests())


async def _call(client: Any, method: str, *arguments: Any) -> list[Any]:
    """The workers' answers. Raises the engine's error if it dies meanwhile."""
    answer = asyncio.ensure_future(client.collective_rpc(method, args=arguments))
    try:
        # vLLM's client waits for ever for the answer of an engine that is gone.
        while not (await asyncio.wait([answer], timeout=_HEALTH_CHECK_SECONDS))[0]:
            if client.errored:
                raise client.dead_error
    finally:
        answer.cancel()
    return list(answer.result())
