"""Embeddings from an `AsyncLLM` (or any vLLM `EngineClient`) that somebody else runs.

What `vllm serve` and programs built on `AsyncLLM` use; the engine must have been started with the
worker extension (`arguments.WORKER_EXTENSION`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from gem_rag.core.arrays import FloatArray
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.layout import Row
from gem_rag.engines.vllm import rpc
from gem_rag.engines.vllm.engine_args import WORKER_EXTENSION, check_supported, engine_died
from gem_rag.errors import GemError

_POLL_SECONDS = 0.01  # seconds between looks at whether generation has ended
_HEALTH_CHECK_SECONDS = 0.5  # and at whether the engine is alive


class AsyncEmbedder:
    """Gathers rows from many tasks into batches, and has vLLM embed them between its steps.

    Made by `connect`; for use in the event loop that it was made in.

    max_text_tokens: most text tokens in one embedding pass.
    dim: length of an embedding.
    """

    def __init__(
        self,
        client: Any,
        checkpoint: Checkpoint,
        capabilities: rpc.WorkerCapabilities,
        share: float,
    ):
        self._client, self._k = client, checkpoint.config.k
        self._capabilities = capabilities
        self._queue = capabilities.queue(self._k, share)
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="gem-rag-embeddings")
        self._dead: GemError | None = None
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
        if self._dead is not None:
            raise self._dead
        self._capabilities.check(rows, self._k)
        future: Future[FloatArray] = Future()
        self._queue.add(rows, future)
        self._wake.set()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Embed nothing more; the engine goes on."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    await self._turn()
        except Exception as error:  # whatever it was, the engine is lost
            self._dead = engine_died(error)
        except asyncio.CancelledError:
            self._dead = GemError("embeddings have been closed")
        self._queue.fail_all(self._dead)

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
        except BaseException as error:
            self._queue.failed(batch, engine_died(error))
            raise
        else:
            self._queue.done(batch, vectors)

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
