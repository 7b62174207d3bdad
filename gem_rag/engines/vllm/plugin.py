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
from typing import TYPE_CHECKING, Any

from gem_rag._utils.suggestions import check_known
from gem_rag.engines.vllm.engine_args import WORKER_EXTENSION
from gem_rag.errors import GemError, InputError

if TYPE_CHECKING:
    from argparse import Namespace

    from fastapi import FastAPI
    from starlette.datastructures import State

    from gem_rag.engines.vllm.async_embedder import AsyncEmbedder
    from gem_rag.engines.vllm.openai_embeddings import EmbeddingCodec

NAME = "gem_rag"
_SETTINGS = ("embed_share",)


def register() -> None:
    """Give vLLM's engines the worker extension, where `VLLM_PLUGINS` names this plugin.

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
        return create(self, *args, **kwargs)

    create_with_extension.gem_rag = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_with_extension


class EmbeddingsPlugin:
    """vLLM's `EndpointPlugin`: the route, and what it needs once the engine is up."""

    name = NAME
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._embedder: AsyncEmbedder | None = None
        self._codec: EmbeddingCodec | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add POST /v1/embeddings."""
        from gem_rag.engines.vllm.openai_embeddings import embeddings_router

        app.include_router(embeddings_router(self._answer))

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Make the engine's workers embedders. Raises GemError if they cannot be."""
        from gem_rag.core.checkpoint import open_checkpoint
        from gem_rag.core.tokenizer import SafeTokenizer
        from gem_rag.engines.vllm.async_embedder import AsyncEmbedder
        from gem_rag.engines.vllm.openai_embeddings import EmbeddingCodec

        if engine_client is None:
            return
        model = engine_client.vllm_config.model_config
        checkpoint = open_checkpoint(model.model, model.revision)
        settings = _settings(engine_client.vllm_config.additional_config)
        self._embedder = await AsyncEmbedder.connect(engine_client, checkpoint, **settings)
        self._codec = EmbeddingCodec(
            SafeTokenizer.from_folder(checkpoint.path),
            checkpoint.config,
            vocabulary=model.get_vocab_size(),
            max_length=checkpoint.config.effective_max_length(self._embedder.max_text_tokens),
            dim=self._embedder.dim,
            names=args.served_model_name or [args.model],
        )

    async def _answer(self, request: Any) -> dict[str, Any]:
        from gem_rag.core.layout import Row
        from gem_rag.engines.vllm.openai_embeddings import ApiError

        if self._embedder is None or self._codec is None:
            raise ApiError("this server runs no engine", status=503, type="server_error")
        try:
            rows = await asyncio.to_thread(self._codec.rows, request)
            vectors = await self._embedder.embed([Row.whole(row) for row in rows])
        except InputError as error:
            raise ApiError(str(error), param="input") from error
        except GemError as error:
            raise ApiError(str(error), status=503, type="server_error") from error
        return await asyncio.to_thread(self._codec.response, request, rows, vectors)


def _settings(additional: Any) -> dict[str, Any]:
    """The plugin's part of vLLM's `--additional-config`."""
    settings = (additional if isinstance(additional, dict) else {}).get(NAME) or {}
    check_known(settings, _SETTINGS, f"--additional-config, {NAME} has an unknown key")
    return dict(settings)
