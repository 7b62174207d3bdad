"""`gem-rag serve` on a free port of this machine, in processes of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from serving import ALIAS, MODEL, wait_until

START_SECONDS = 180
STOP_SECONDS = 20
_TAIL = 6000


@dataclass(frozen=True)
class Server:
    """A server that answers.

    process: vLLM's API server, which leads a process group of its own.
    url: without a slash at its end.
    log: what it has printed.
    """

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def engine_processes(self) -> list[psutil.Process]:
        """The engine core, then its workers."""
        return living_children(self.process.pid, "VLLM::")

    def is_healthy(self) -> bool:
        """Whether /health answers 200."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


def living_children(pid: int, name: str) -> list[psutil.Process]:
    """Processes that a process has started, and those that these have, by a part of their command
    lines; those that have ended, and that nobody has waited for, have none."""
    children = psutil.Process(pid).children(recursive=True)
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if name in " ".join(child.cmdline())]


@contextmanager
def serving(folder: Path, *more: str) -> Iterator[Server]:
    """A server of the bundled model, which keeps its log and its caches in the folder.

    more: options of `gem-rag serve`.

    Raises AssertionError with the end of its log if it does not start.
    """
    port = _free_port()
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_command(port), *more],
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_until(lambda: process.poll() is not None or server.is_healthy(), START_SECONDS)
        assert server.is_healthy(), f"the server did not start:\n{_tail(log)}"
        yield server
    finally:
        _end_group(process)


def _command(port: int) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "gem_rag",
            "serve",
            "--engine",
            "vllm",
            "--model",
            MODEL,
            "--port",
            str(port),
        ),
        *("--dtype", "float32", "--kv-cache-memory-bytes", str(64 << 20), "--enforce-eager"),
        *("--served-model-name", MODEL, ALIAS),
        *("--enable-server-load-tracking", "--shutdown-timeout", "60"),
    ]


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_CONFIG_ROOT": str(folder / "config"),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL:]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the process's group is left, which it may have ended before."""
    _signal_group(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # the group bears the number of its leader
