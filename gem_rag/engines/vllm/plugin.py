"""`/v1/embeddings` in `vllm serve`, beside `/v1/chat/completions`, from the same weights.

vLLM finds both parts by their entry points, and loads them if `VLLM_PLUGINS` names "gem_rag":

- `register` (`vllm.general_plugins`) gives every engine the worker extension;
- `EmbeddingsPlugin` (`vllm.endpoint_plugins`) adds the route.

`--additional-config '{"gem_rag": {"embed_share": 0.3}}'` sets the share of the time that
embeddings may take while text is being generated.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gem_rag._utils.suggestions import check_known
from gem_rag.engines.vllm.engine_args import WORKER_EXTENSION
from gem_rag.errors import GemError, InputError

if TYPE_CHECKING:
    from argparse import Namespace

    from fastapi import FastAPI
    from starlette.datastructures import State
    from starlette.requests import Request
    from starlette.responses import Response

    from gem_rag.engines.vllm.async_embedder import AsyncEmbedder
    from gem_rag.engines.vllm.embedding_codec import EmbeddingCodec
    from gem_rag.engines.vllm.openai_embeddings import EmbeddingRequest

NAME = "gem_rag"
_SETTINGS = ("embed_share",)


def register() -> None:
    """Give vLLM's engines the worker extension, and adapter-only checkpoints their base, where
    `VLLM_PLUGINS` names this plugin.

    vLLM calls this in each of its processes wherever gem-rag is installed; unasked, it does
    nothing.
    """
    if NAME not in (os.environ.get("VLLM_PLUGINS") or "").split(","):
        return
    from vllm.engine.arg_utils import EngineArgs

    create = EngineArgs.create_engine_config
    if getattr(create, "gem_rag", False):
        return

    def create_with_extension(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.worker_extension_cls = self.worker_extension_cls or WORKER_EXTENSION
        if self.model != (folder := _whole_folder(self.model, self.revision)):
            self.served_model_name = self.served_model_name or self.model
            self.model = folder
        return create(self, *args, **kwargs)

    create_with_extension.gem_rag = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_with_extension


def _whole_folder(model: str, revision: str | None) -> str:
    """A folder of all that a model is made of; the name itself where vLLM finds it by that."""
    from gem_rag.core.checkpoint import open_checkpoint
    from gem_rag.core.model_packages import model_package

    try:
        checkpoint = open_checkpoint(model, revision)
    except InputError:
        return model  # vLLM says what is wrong with it
    known_to_vllm = Path(model).is_dir() or model_package(model) is None
    if checkpoint.base is None and known_to_vllm and not Path(model).is_file():
        return model
    return str(checkpoint.path)


class EmbeddingsPlugin:
    """vLLM's `EndpointPlugin`: the route, and what it needs once the engine is up."""

    name = NAME
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._embedder: AsyncEmbedder | None = None
        self._codec: EmbeddingCodec | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add POST /v1/embeddings, which ends with its client and is counted in vLLM's /load."""
        from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation

        from gem_rag.engines.vllm.openai_embeddings import embeddings_router

        app.include_router(embeddings_router(with_cancellation(load_aware_call(self._answer))))

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Make the engine's workers embedders. Raises GemError if they cannot be."""
        from gem_rag.core.checkpoint import open_checkpoint
        from gem_rag.core.tokenizer import SafeTokenizer
        from gem_rag.engines.vllm import embedding_metrics
        from gem_rag.engines.vllm.async_embedder import AsyncEmbedder
        from gem_rag.engines.vllm.embedding_codec import EmbeddingCodec

        if engine_client is None:
            return
        model = engine_client.vllm_config.model_config
        checkpoint = open_checkpoint(model.model, model.revision)
        settings = _settings(engine_client.vllm_config.additional_config)
        embedder = await AsyncEmbedder.connect(engine_client, checkpoint, **settings)
        embedding_metrics.WAITING.set_function(lambda: embedder.num_waiting)
        engine_client.shutdown = _drain_first(embedder, engine_client.shutdown)
        self._embedder = embedder
        self._codec = EmbeddingCodec(
            SafeTokenizer.from_folder(checkpoint.path),
            checkpoint.config,
            vocabulary=model.get_vocab_size(),
            max_length=checkpoint.config.effective_max_length(embedder.max_text_tokens),
            dim=embedder.dim,
            names=args.served_model_name or [args.model],
        )

    async def _answer(self, request: EmbeddingRequest, raw_request: Request) -> Response:
        from starlette.responses import Response

        from gem_rag.engines.vllm import embedding_metrics
        from gem_rag.engines.vllm.openai_embeddings import ApiError

        with embedding_metrics.observed() as outcome:
            try:
                body, tokens = await self._embed(request, raw_request.headers.get("x-request-id"))
            except ApiError as error:
                outcome.status = error.status
                raise
            outcome.status = 200
            embedding_metrics.PROMPT_TOKENS.inc(tokens)
            return Response(body, media_type="application/json")

    async def _embed(self, request: EmbeddingRequest, request_id: str | None) -> tuple[bytes, int]:
        """The response's body, and how many tokens the request had."""
        from gem_rag.core.layout import Row
        from gem_rag.engines.vllm.openai_embeddings import ApiError

        if self._embedder is None or self._codec is None:
            raise ApiError("this server runs no engine", status=503)
        rows = await self._codec.rows(request)
        try:
            vectors = await self._embedder.embed([Row.whole(row) for row in rows])
        except InputError as error:
            raise ApiError(str(error), param="input") from error
        except GemError as error:
            raise ApiError(str(error), status=503) from error
        render = self._codec.response
        body = await asyncio.to_thread(render, request, rows, vectors, request_id)
        return body, sum(map(len, rows))


def _drain_first(embedder: AsyncEmbedder, shutdown: Callable[..., None]) -> Callable[..., None]:
    """The engine's `shutdown`, before which embeddings that were asked for are made.

    vLLM waits for text that is being generated, but answers no worker calls once it shuts down.
    """
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def drain_and_shutdown(timeout: float | None = None) -> None:
        start = time.monotonic()
        if timeout and threading.get_ident() != thread:  # vLLM calls it in a thread, to drain
            asyncio.run_coroutine_threadsafe(embedder.drain(timeout), loop).result()
            timeout = max(0.0, timeout - (time.monotonic() - start))
        shutdown(timeout=timeout)

    return drain_and_shutdown


def _settings(additional: Any) -> dict[str, Any]:
    """The plugin's part of vLLM's `--additional-config`."""
    settings = (additional if isinstance(additional, dict) else {}).get(NAME) or {}
    check_known(settings, _SETTINGS, f"--additional-config, {NAME} has an unknown key")
    return dict(settings)
