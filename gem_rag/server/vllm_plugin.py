"""Our routes in `vllm serve`, beside vLLM's own, from the same weights.

vLLM finds both parts by their entry points, and loads them if `VLLM_PLUGINS` names "gem_rag":

- `register` (`vllm.general_plugins`) gives every engine the worker extension;
- `ServerPlugin` (`vllm.endpoint_plugins`) adds the routes: embeddings, and those over indexes.

`--additional-config '{"gem_rag": {"embed_share": 0.3, "indexes": {"docs": "/folder"}}}'` sets the
share of the time that embeddings may take while text is being generated, and what is served.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gem_rag._utils.suggestions import check_known
from gem_rag.engines.vllm.engine_args import WORKER_EXTENSION
from gem_rag.errors import InputError

if TYPE_CHECKING:
    from argparse import Namespace

    from fastapi import FastAPI
    from starlette.datastructures import State

    from gem_rag.core.arrays import FloatArray
    from gem_rag.engines.vllm.async_embedder import AsyncEmbedder
    from gem_rag.server.app import Routes
    from gem_rag.server.catalog import IndexFolder, Service
    from gem_rag.server.settings import Settings

NAME = "gem_rag"
KEYS = "GEM_RAG_API_KEY"  # a variable, which nobody sees in the command line
_SETTINGS = ("embed_share", "indexes", "settings")
_RUNNING = 512  # requests at once, unless settings say otherwise


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


class ServerPlugin:
    """vLLM's `EndpointPlugin`: the routes, and what they need once the engine is up."""

    name = NAME
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._service: Service | None = None
        self._routes: Routes | None = None
        self._embedder: AsyncEmbedder | None = None
        self._background: asyncio.Task[None] | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes; those of chats with an index go before vLLM's."""
        from fastapi import FastAPI as App

        from gem_rag.server.app import Routes, protect
        from gem_rag.server.catalog import Service
        from gem_rag.server.chat import chat_router
        from gem_rag.server.embedding_answer import EmbeddingAnswer
        from gem_rag.server.embeddings import embeddings_router
        from gem_rag.server.model_switch import ModelSwitch

        ours = _settings(app.state.args.additional_config)
        service = Service(ours.settings)
        answer = EmbeddingAnswer(service, self._embed)
        app.include_router(embeddings_router(_count_load(answer.__call__)))
        self._service, self._routes = service, Routes(service)
        self._routes.attach(app)
        chats = App()
        chats.include_router(chat_router(service))
        takes_tools = not app.state.args.enable_auto_tool_choice
        app.add_middleware(ModelSwitch, chats=chats, takes_tools=takes_tools)
        protect(app, ours.settings)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Make the engine's workers embedders, and open the indexes.

        Raises GemError if they cannot be.
        """
        from gem_rag.core.checkpoint import open_checkpoint
        from gem_rag.engines.vllm.async_embedder import AsyncEmbedder
        from gem_rag.engines.vllm.client_engine import ClientEngine
        from gem_rag.model import Gem
        from gem_rag.server import embedding_metrics, metrics
        from gem_rag.server.catalog import Catalog

        if engine_client is None or self._service is None:
            return
        config = engine_client.vllm_config
        checkpoint = open_checkpoint(config.model_config.model, config.model_config.revision)
        ours = _settings(config.additional_config)
        embedder = await AsyncEmbedder.connect(engine_client, checkpoint, ours.embed_share)
        embedding_metrics.WAITING.set_function(lambda: embedder.num_waiting)
        engine_client.shutdown = _drain_first(embedder, engine_client.shutdown)
        self._embedder = embedder
        gem = Gem(checkpoint, ClientEngine(checkpoint, engine_client, embedder))
        metrics.GENERATING.set_function(lambda: gem.num_generating)
        names = args.served_model_name or [args.model]
        self._service.catalog = await asyncio.to_thread(
            Catalog.open, gem, ours.folders, ours.settings, names=names
        )
        running = asyncio.Event()
        self._background = asyncio.create_task(self._run(running), name="gem-rag-routes")
        await running.wait()

    async def _run(self, running: asyncio.Event) -> None:
        assert self._routes is not None
        async with self._routes.running():
            running.set()
            await asyncio.Event().wait()  # until it is cancelled, with the server

    async def _embed(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        from gem_rag.core.layout import Row

        assert self._embedder is not None
        return await self._embedder.embed([Row.whole(row) for row in rows])


def _count_load(answer: Any) -> Any:
    """An answer that vLLM's /load counts while it is made."""
    from vllm.entrypoints.serve.utils.api_utils import load_aware_call

    counted = load_aware_call(answer)

    async def answer_counted(request: Any, raw_request: Any) -> Any:
        try:
            return await counted(request, raw_request)
        except asyncio.CancelledError:  # which vLLM's decorator passes by
            if getattr(raw_request.app.state, "enable_server_load_tracking", False):
                raw_request.app.state.server_load_metrics -= 1
            raise

    return answer_counted


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


class _Ours(NamedTuple):
    """The plugin's part of vLLM's `--additional-config`."""

    embed_share: float
    folders: list[IndexFolder]
    settings: Settings


def _settings(additional: Any) -> _Ours:
    from gem_rag.server.catalog import IndexFolder
    from gem_rag.server.settings import Settings

    given = (additional if isinstance(additional, dict) else {}).get(NAME) or {}
    check_known(given, _SETTINGS, f"--additional-config, {NAME} has an unknown key")
    allowed = given.get("settings") or {}
    known = list(Settings.__dataclass_fields__)
    check_known(allowed, known, f"--additional-config, {NAME}.settings has an unknown key")
    for name in ("allowed_hosts", "allowed_origins"):
        allowed = {**allowed, name: tuple(allowed.get(name, ()))}
    keys = tuple((os.environ.get(KEYS) or "").split())
    folders = [IndexFolder(name, Path(path)) for name, path in given.get("indexes", {}).items()]
    settings = Settings(**{"max_running": _RUNNING, **allowed, "api_keys": keys})
    return _Ours(given.get("embed_share", 0.5), folders, settings)
