"""How long an event loop stalls while texts are embedded by asynchronous calls.

A task wakes up every millisecond and records how late it is: first alone, then while
`GemEmbeddings` (LangChain) and `GemEmbedding` (LlamaIndex) embed 2,000 chunks with their
asynchronous methods. The objects that the imports created are frozen first, as servers do after
start-up: otherwise Python's garbage collector would traverse all of them once, whoever embeds, and
stop every thread for a third of a second.

    python benchmarks/event_loop.py [--model NAME] [--chunks N]
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import platform
import time
from collections.abc import Awaitable, Callable
from pydoc_data.topics import topics

import torch
import typer
from langchain_gem import GemEmbeddings
from llama_index.embeddings.gem import GemEmbedding
from rich.console import Console
from rich.table import Table

import gem_rag
from gem_rag.documents.document import Document
from gem_rag.documents.splitting import Splitter

INTERVAL = 0.001  # seconds


def main(model: str = "gem-tiny", chunks: int = 2000) -> None:
    """Print the longest stalls."""
    gem = gem_rag.load(model)
    splitter = Splitter(gem.tokenizer, min(64, gem.max_length))
    documents = [Document(name, text) for name, text in topics.items()]
    passages = [chunk.passage for document in documents for chunk in splitter.split(document)]
    passages = list(itertools.islice(itertools.cycle(passages), chunks))
    workloads: dict[str, Callable[[], Awaitable[object]]] = {
        "nothing": lambda: asyncio.sleep(3),
        "GemEmbeddings.aembed_documents": lambda: GemEmbeddings(model=model).aembed_documents(
            passages
        ),
        "GemEmbedding.aget_text_embedding_batch": lambda: GemEmbedding(
            model=model
        ).aget_text_embedding_batch(passages),
    }
    gc.collect()
    gc.freeze()
    table = Table("workload", "seconds", "longest stall, ms", "wake-ups")
    for name, workload in workloads.items():
        delays, seconds = asyncio.run(measure_delays(workload))
        table.add_row(name, f"{seconds:.1f}", f"{1000 * max(delays):.1f}", str(len(delays)))
    Console().print(table)
    print(
        f"{len(passages)} chunks; {gem.name}; {platform.machine()}, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}"
    )


async def measure_delays(
    workload: Callable[[], Awaitable[object]],
) -> tuple[list[float], float]:
    """The delay of each wake-up, and the duration of the workload, in seconds."""
    delays: list[float] = []

    async def watch() -> None:
        while True:
            slept_at = time.perf_counter()
            await asyncio.sleep(INTERVAL)
            delays.append(time.perf_counter() - slept_at - INTERVAL)

    watcher = asyncio.create_task(watch())
    start = time.perf_counter()
    await workload()
    seconds = time.perf_counter() - start
    watcher.cancel()
    return delays, seconds


if __name__ == "__main__":
    typer.run(main)
