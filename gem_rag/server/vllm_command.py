"""The command that serves a model with vLLM: its own API server, with every flag that is needed."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from gem_rag.core.checkpoint import Checkpoint
from gem_rag.engines.vllm.embedding_queue import check_share
from gem_rag.engines.vllm.engine_args import LOOP_BREAKER, WORKER_EXTENSION
from gem_rag.errors import InputError
from gem_rag.server.catalog import IndexFolder
from gem_rag.server.settings import Settings
from gem_rag.server.vllm_plugin import KEYS, NAME

# The groups that vLLM loads from whole, unless VLLM_PLUGINS names what may be loaded.
_GROUPS = ("general", "platform", "io_processor", "stat_logger")
_OURS = ("--model", "--worker-extension-cls", "--additional-config", "--allowed-origins")


def command(
    checkpoint: Checkpoint,
    *,
    host: str,
    port: int,
    embed_share: float,
    folders: Sequence[IndexFolder] = (),
    settings: Settings | None = None,
    more: Sequence[str] = (),
) -> list[str]:
    """The server's command line, which shows no API keys.

    folders: of indexes that are served.
    settings: what is allowed.
    more: flags of `vllm serve`, handed on as they are.

    Raises InputError for a flag that gem-rag sets itself.
    """
    check_share(embed_share)
    given = {_flag(word) for word in more}
    for flag in _OURS:
        if flag in given:
            raise InputError(f"{flag} is set by gem-rag serve: leave it out")
    if given & {"--api-server-count", "-asc"}:
        raise InputError(
            "gem-rag serve runs one API server, and vLLM ignores --api-server-count there: leave "
            "it out"
        )
    named = "--served-model-name" in given
    names = () if named else ("--served-model-name", checkpoint.name)
    settings = settings or Settings()
    allowed = {k: v for k, v in dataclasses.asdict(settings).items() if k != "api_keys"}
    ours = {
        "embed_share": embed_share,
        "indexes": {name: str(folder) for name, folder in folders},
        "settings": allowed,
    }
    # What gem-rag writes under a grammar is of llguidance's, and ends if it repeats itself.
    usual = []
    if not any(flag.startswith("--structured-outputs-config") for flag in given):
        usual += ["--structured-outputs-config", json.dumps({"backend": "guidance"})]
    if not given & {"--speculative-config", "--logits-processors"}:
        usual += ["--logits-processors", LOOP_BREAKER]
    return [
        # The module, not the `vllm` command, which asks for a distribution of that name: the CPU
        # build has another.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(checkpoint.path), *names),
        *("--worker-extension-cls", WORKER_EXTENSION),
        *("--additional-config", json.dumps({NAME: ours})),
        *("--allowed-origins", json.dumps(settings.allowed_origins)),
        *usual,
        *("--host", host, "--port", str(port)),
        *more,
    ]


def _flag(word: str) -> str:
    """A flag without its value, as vLLM reads it: --a_b.c=1 sets a part of --a-b."""
    return word.split("=")[0].split(".")[0].replace("_", "-")


def environment(api_keys: Sequence[str] = ()) -> dict[str, str]:
    """This process's variables, with the plugin allowed beside those that are allowed already."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is None:
        groups = [entry_points(group=f"vllm.{group}_plugins") for group in _GROUPS]
        names = {point.name for group in groups for point in group}
    else:
        names = {name for name in allowed.split(",") if name}
    keys = {KEYS: " ".join(api_keys)} if api_keys else {}
    return {**os.environ, **keys, "VLLM_PLUGINS": ",".join(sorted({*names, NAME}))}
