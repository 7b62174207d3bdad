"""How long a small embedding request waits while others misuse the server, beside vLLM's own.

`gem-rag serve` and vLLM's pooling server, on the same weights and one after the other, with two
attacks: three clients ask for 2,048 long texts each and hang up, and eight send a text of 10 MB,
which is refused. Small requests and `/health` are asked for all the while, and the memory of the
server's process is watched.

    python benchmarks/server_attacks.py [--model FOLDER]
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import typer
from rich.console import Console
from rich.table import Table

from gem_rag.core.checkpoint import open_checkpoint

CLIENT = httpx.Client(timeout=300)
LONG = " ".join(["retrieval", "of", "passages"] * 12)  # what every bundled model reads at once
QUIET, AFTER = 3.0, 8.0  # seconds that are watched without an attack, and from its beginning
HANGS_UP = 2.0  # seconds after which a client has lost its patience


class Server(NamedTuple):
    """A server that answers.

    url: without a slash at its end.
    pid: of the process that takes requests.
    """

    url: str
    pid: int


class Watched(NamedTuple):
    """What was seen for a while: seconds of each answer, and bytes."""

    small: list[float]
    health: list[float]
    memory: int


def main(model: str = "gem-tiny") -> None:
    """Print delays and memory."""
    folder = str(open_checkpoint(model).path)
    commands = {
        "gem-rag serve": ["-m", "gem_rag", "serve", "--engine", "vllm", "--model", folder],
        "vLLM's pooling server": [
            *("-m", "vllm.entrypoints.openai.api_server", "--model", folder),
            *("--runner", "pooling", "--convert", "embed", "--no-enable-prefix-caching"),
        ],
    }
    attacks: dict[str, Callable[[str], None]] = {
        "nothing": lambda url: None,
        "three clients hang up": hang_up,
        "eight texts of 10 MB": send_megabytes,
    }
    table = Table("server", "meanwhile", "small, median ms", "worst ms", "/health, worst ms", "MiB")
    for name, command in commands.items():
        with serving(command) as server:
            embed(server.url)  # compiles what is compiled at the first request
            for title, attack in attacks.items():
                seen = watch(server, attack, QUIET if title == "nothing" else AFTER)
                table.add_row(
                    name,
                    title,
                    f"{1000 * statistics.median(seen.small):.0f}",
                    f"{1000 * max(seen.small):.0f}",
                    f"{1000 * max(seen.health):.0f}",
                    f"{seen.memory >> 20}",
                )
    Console().print(table)
    print(f"{model}; {platform.machine()}, {os.cpu_count()} cores")


def watch(server: Server, attack: Callable[[str], None], seconds: float) -> Watched:
    """Ask small things, one after the other, from the attack's beginning."""
    attacker = threading.Thread(target=attack, args=(server.url,))
    seen, process = Watched([], [], 0), psutil.Process(server.pid)
    attacker.start()
    end, memory = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        seen.small.append(timed(lambda: embed(server.url)))
        seen.health.append(timed(lambda: CLIENT.get(f"{server.url}/health")))
        memory = max(memory, process.memory_info().rss)
    attacker.join()
    return seen._replace(memory=memory)


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def embed(url: str) -> None:
    """One short text."""
    body = {"input": "a short question"}
    CLIENT.post(f"{url}/v1/embeddings", json=body).raise_for_status()


def hang_up(url: str) -> None:
    """Three clients ask for much and leave."""
    body = {"input": [f"{number} {LONG}" for number in range(2048)]}
    together([lambda: post_and_leave(url, body, HANGS_UP)] * 3)


def send_megabytes(url: str) -> None:
    """Eight texts that no model reads."""
    body = {"input": "word " * 2_000_000}
    together([lambda: post_and_leave(url, body, 300)] * 8)


def post_and_leave(url: str, body: dict[str, object], seconds: float) -> None:
    with suppress(httpx.TimeoutException):
        httpx.post(f"{url}/v1/embeddings", json=body, timeout=seconds)


def together(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def serving(command: list[str]) -> Iterator[Server]:
    """The server that a command of Python's starts, on a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    own = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    own += ["--kv-cache-memory-bytes", str(256 << 20), "--enforce-eager"]
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "log")
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command, *own],
                env=env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
            yield Server(f"http://127.0.0.1:{port}", process.pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        time.sleep(0.2)
    raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


if __name__ == "__main__":
    typer.run(main)
