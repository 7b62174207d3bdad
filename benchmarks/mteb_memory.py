"""What an evaluation by mteb needs beside embedding: memory and time, at growing numbers of texts.

A retrieval task of N chunks of Python's language reference, each of which must be found by its
first words, runs through `gem_rag.evaluation.mteb_tasks`. A sampler notes the process's memory.

    python benchmarks/mteb_memory.py [--model NAME] [--texts N --texts M]
"""

from __future__ import annotations

import platform
import tempfile
import threading
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import psutil
import torch
import typer
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from rich.console import Console
from rich.table import Table

import gem_rag
from gem_rag.evaluation.document_tasks import task_metadata
from gem_rag.evaluation.mteb_tasks import run_mteb

MIB = 2**20


class Chunks(AbsTaskRetrieval):
    """Texts of about 40 words, found by their first eight."""

    metadata = task_metadata("Chunks", "Retrieval", "ndcg_at_10")

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def load_data(self, **_: object) -> None:
        words = " ".join(topics.values()).split()
        step = max(1, (len(words) - 40) // self.count)
        texts = [" ".join(words[n * step : n * step + 40]) for n in range(self.count)]
        queries = [" ".join(text.split()[:8]) for text in texts[:: max(1, self.count // 500)]]
        ids = range(0, self.count, max(1, self.count // 500))
        self.dataset = {"default": {"test": RetrievalSplitData(
            queries=Dataset.from_dict({"id": [f"q{n}" for n in ids], "text": queries}),
            corpus=Dataset.from_dict({
                "id": [f"d{n}" for n in range(self.count)],
                "title": [""] * self.count,
                "text": texts,
            }),
            relevant_docs={f"q{n}": {f"d{n}": 1} for n in ids},
            top_ranked=None,
        )}}  # fmt: skip
        self.data_loaded = True


def main(
    model: str = "gem-tiny",
    texts: Annotated[list[int] | None, typer.Option(help="how many; again for more")] = None,
) -> None:
    """Print a table."""
    gem = gem_rag.load(model)
    table = Table("texts", "seconds", "of them embedding", "memory beside the model")
    for count in texts or [1000, 10_000]:
        with tempfile.TemporaryDirectory() as folder, Peak() as peak:
            found = run_mteb(gem, [Chunks(count)], Path(folder))
        seconds, embedding = found.timings["mteb"], found.timings["mteb embedding"]
        table.add_row(f"{count:,}", f"{seconds:.1f}", f"{embedding / seconds:.1%}",
                      f"{peak.grown / MIB:.0f} MiB")  # fmt: skip
    console = Console()
    console.print(table)
    console.print(f"{gem.name}, {torch.get_num_threads()} threads, {platform.machine()}")


class Peak:
    """How far this process's memory rises above where it was."""

    def __enter__(self) -> Peak:
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._highest = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self._highest = max(self._highest, self._process.memory_info().rss)
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        return self._highest - self._before


if __name__ == "__main__":
    typer.run(main)
