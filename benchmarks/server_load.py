"""Sixty-four clients mix chats, embeddings, questions to an index and aborts for two minutes.

Every answer is compared with the one that the same request got alone before; the server's memory
is watched; then chats are timed beside one client that embeds 10,000 documents.

    python benchmarks/server_load.py [--engine vllm] [--seconds 120] [--documents 10000]
"""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import typer
from measuring import record

import gem_rag

MODEL = "gem-tiny"
TOPICS = 40  # that are indexed
GIVEN_BACK = 60.0  # seconds after the load, in which the server gives back what it can
PATIENCE = 0.2  # seconds after which a client that aborts is gone
ON_VLLM = ("--dtype", "float32", "--kv-cache-memory-bytes", str(256 << 20), "--enforce-eager")


class Task(NamedTuple):
    """A request, and how its answer is read.

    Attributes:
        kind: "chat", "embedding" or "ask".
        path: The route.
        body: Its body.
        read: What is compared of the answer.
    """

    kind: str
    path: str
    body: dict[str, Any]
    read: Callable[[Any], Any]


def main(
    engine: str = "transformers",
    seconds: float = 120.0,
    clients: int = 64,
    documents: int = 10_000,
) -> None:
    """Measure, and record."""
    with tempfile.TemporaryDirectory() as scratch:
        index = make_index(Path(scratch))
        log = Path(scratch, "log")
        figures = asyncio.run(measure(engine, index, seconds, clients, documents, log))
    record("server_load", {"engine": engine, "clients": clients, "seconds": seconds, **figures})


def make_index(folder: Path) -> Path:
    """An index of some of Python's language reference."""
    documents = folder / "reference"
    documents.mkdir()
    for name, text in list(topics.items())[:TOPICS]:
        (documents / f"{name.replace('/', '_')}.txt").write_text(text)
    with gem_rag.load(MODEL) as gem:
        gem_rag.Index.open(folder / "index", gem).sync(documents)
    return folder / "index"


def make_tasks() -> list[Task]:
    """As many of each kind, each unlike the others."""
    names = list(topics)[:16]
    tasks = []
    for name in names:
        asked = [{"role": "user", "content": f"Explain {name}."}]
        greedy = {"model": MODEL, "temperature": 0, "max_tokens": 32}
        tasks.append(
            Task("chat", "/v1/chat/completions", {**greedy, "messages": asked}, read_message)
        )
        tasks.append(
            Task("embedding", "/v1/embeddings", {"input": [name, topics[name][:300]]}, read_vectors)
        )
        question = {"question": f"What is {name}?"}
        tasks.append(Task("ask", "/v1/rag/ask", question, lambda found: found["text"]))
    return tasks


def read_message(found: Any) -> Any:
    return found["choices"][0]["message"]["content"]


def read_vectors(found: Any) -> Any:
    return np.array([entry["embedding"] for entry in found["data"]])


# -- what is measured ----------------------------------------------------------------------------


async def measure(
    engine: str, index: Path, seconds: float, clients: int, documents: int, log: Path
) -> dict[str, Any]:
    async with serving(engine, index, log) as (client, process):
        tasks = make_tasks()
        alone = [task.read(await post(client, task)) for task in tasks]
        memory = [memory_of(process)]
        times: dict[str, list[float]] = defaultdict(list)
        wrong: list[str] = []
        end = time.monotonic() + seconds
        await asyncio.gather(
            watch_memory(process, end, seconds / 4, memory),
            *(use(client, number, tasks, alone, end, times, wrong) for number in range(clients)),
        )
        figures: dict[str, Any] = {"answers": sum(map(len, times.values())), "wrong": len(wrong)}
        for kind in sorted(times):
            figures |= percentiles(kind, times[kind])
        figures["MiB before, and after each quarter"] = [used >> 20 for used in memory]
        figures["running afterwards"] = await running(client)
        await asyncio.sleep(GIVEN_BACK)
        figures["MiB a minute later"] = memory_of(process) >> 20
        return figures | await measure_chats_beside_embedding(client, tasks, documents)


async def watch_memory(
    process: psutil.Process, end: float, pause: float, memory: list[int]
) -> None:
    """Note what the server needs, now and then; what it needs once, it keeps."""
    while time.monotonic() < end:
        await asyncio.sleep(pause)
        memory.append(memory_of(process))


async def use(
    client: httpx.AsyncClient,
    number: int,
    tasks: list[Task],
    alone: list[Any],
    end: float,
    times: dict[str, list[float]],
    wrong: list[str],
) -> None:
    """One client: it asks, one request after the other, and hangs up on every fifth."""
    chance = random.Random(number)
    while time.monotonic() < end:
        place = chance.randrange(len(tasks))
        task = tasks[place]
        start = time.perf_counter()
        if chance.random() < 0.2:
            try:
                await asyncio.wait_for(post(client, task), PATIENCE)
            except TimeoutError:
                times["abort"].append(time.perf_counter() - start)
            continue
        found = task.read(await post(client, task))
        times[task.kind].append(time.perf_counter() - start)
        if not equal(found, alone[place]):
            wrong.append(f"{task.path} {task.body}: {found!r}, alone {alone[place]!r}")


async def measure_chats_beside_embedding(
    client: httpx.AsyncClient, tasks: list[Task], documents: int
) -> dict[str, Any]:
    """Chats, one after the other, by themselves and while documents are embedded."""
    chats = itertools.cycle([task for task in tasks if task.kind == "chat"])

    async def chat() -> float:
        start = time.perf_counter()
        await post(client, next(chats))
        return time.perf_counter() - start

    quiet = [await chat() for _ in range(50)]
    pool = itertools.cycle(topics.values())
    texts = [f"{number} {next(pool)[:300]}" for number in range(documents)]
    body = {"input": texts, "encoding_format": "base64"}
    start = time.perf_counter()
    embedding = asyncio.create_task(post(client, Task("", "/v1/embeddings", body, len)))
    beside = []
    while not embedding.done():
        beside.append(await chat())
    await embedding
    took = round(time.perf_counter() - start, 1)
    return {
        **percentiles("chat alone", quiet),
        **percentiles(f"chat beside {documents:,} documents", beside),
        f"{documents:,} documents, s": took,
    }


def equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return bool(np.allclose(found, wanted, atol=1e-4))
    return bool(found == wanted)


def percentiles(kind: str, times: list[float]) -> dict[str, Any]:
    p50, p95 = (round(float(np.percentile(times, p)), 3) for p in (50, 95))
    return {f"{kind}: n": len(times), f"{kind}: p50 s": p50, f"{kind}: p95 s": p95}


# -- the server ----------------------------------------------------------------------------------


async def post(client: httpx.AsyncClient, task: Task) -> Any:
    response = await client.post(task.path, json=task.body)
    response.raise_for_status()
    return response.json()


async def running(client: httpx.AsyncClient) -> float:
    """Texts that are still generated, a second after the last client has left."""
    await asyncio.sleep(1)
    lines = (await client.get("/metrics")).text.splitlines()
    name = "gem_rag:texts_generating"
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def memory_of(process: psutil.Process) -> int:
    """Bytes of the server's processes together."""
    found = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in found)


@asynccontextmanager
async def serving(
    engine: str, index: Path, log: Path
) -> AsyncIterator[tuple[httpx.AsyncClient, psutil.Process]]:
    """A server on a free port, and a client of it."""
    port = free_port()
    command = [sys.executable, "-m", "gem_rag", "serve", "--engine", engine]
    command += ["--index", f"docs={index}", "--port", str(port)]
    command += ON_VLLM if engine == "vllm" else ()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    limits = httpx.Limits(max_connections=None)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        try:
            await wait_until_healthy(client, process, log)
            yield client, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


async def wait_until_healthy(
    client: httpx.AsyncClient, process: subprocess.Popen[bytes], log: Path
) -> None:
    while process.poll() is None:
        try:
            if (await client.get("/health")).is_success:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.2)
    raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    typer.run(main)
