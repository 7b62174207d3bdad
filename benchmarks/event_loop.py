"""How long an event loop stands still while texts are embedded beside it.

A task wakes up every millisecond and notes how late it is, first alone, then while `GemEmbeddings`
(LangChain) and `GemEmbedding` (LlamaIndex) embed 2,000 chunks with their async methods. What the
imports left behind is frozen first, as servers do when they have started: Python's collector would
look through all of it once, whoever embeds, and stop every thread for a third of a second.

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
from gem_rag.documents.splitting import chunks as split

TICK = 0.001  # seconds


def main(model: str = "gem-tiny", chunks: int = 2000) -> None:
    """Print the longest stalls."""
    gem = gem_rag.load(model)
    splitter = Splitter(gem.tokenizer, min(64, gem.max_length))
    documents = [Document(name, text) for name, text in topics.items()]
    passages = [c.passage for d in documents for c in split(d, splitter.spans(d))]
    passages = list(itertools.islice(itertools.cycle(passages), chunks))
    ways: dict[str, Callable[[], Awaitable[object]]] = {
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
    table = Table("beside", "seconds", "longest stall, ms", "wake-ups")
    for name, way in ways.items():
        late, seconds = asyncio.run(stalls(way))
        table.add_row(name, f"{seconds:.1f}", f"{1000 * max(late):.1f}", str(len(late)))
    Console().print(table)
    print(f"{len(passages)} chunks; {gem.name}; {platform.machine()}, {torch.get_num_threads()} "
          f"threads, torch {torch.__version__}")  # fmt: skip


async def stalls(way: Callable[[], Awaitable[object]]) -> tuple[list[float], float]:
    """How late each wake-up came, and how long it all took, in seconds."""
    late: list[float] = []

    async def watch() -> None:
        while True:
            asleep = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - asleep - TICK)

    watcher = asyncio.create_task(watch())
    start = time.perf_counter()
    await way()
    seconds = time.perf_counter() - start
    watcher.cancel()
    return late, seconds


if __name__ == "__main__":
    typer.run(main)
