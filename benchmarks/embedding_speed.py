"""Embedding throughput of `Gem.embed_documents`, against simpler ways to run the same model.

All run in the same process on the same texts, in turn, for several rounds; quote the ratio within
a round. The baselines are batches of 32 texts in the given order, padded, with a T x T mask (the
straightforward implementation), and gem-rag's batches with a T x T mask.

    python benchmarks/embedding_speed.py [--model NAME] [--texts N] [--rounds N]
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pydoc_data.topics import topics

import torch
import typer
from rich.console import Console
from rich.table import Table

from gem_rag import Gem
from gem_rag.core.attention import LoweringName
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.core.encoder import GemEncoder
from gem_rag.core.layout import Arrangement, Layout, Row, plan_batches
from gem_rag.documents.document import Document
from gem_rag.documents.splitting import Splitter
from gem_rag.engines.transformers_engine import TransformersEngine


def main(model: str = "gem-tiny", texts: int = 1000, rounds: int = 3) -> None:
    """Print tokens per second and ratios."""
    checkpoint = open_checkpoint(model)
    engine = TransformersEngine(checkpoint)
    gem = Gem(checkpoint, engine)
    splitter = Splitter(gem.tokenizer, min(256, gem.max_length))
    documents = [Document(name, text) for name, text in topics.items()]
    passages = [chunk.passage for document in documents for chunk in splitter.split(document)][
        :texts
    ]
    rows = [Row.whole(gem.tokenize(passage)) for passage in passages]
    tokens = sum(len(row.text) for row in rows)

    in_order = [list(range(i, min(i + 32, len(rows)))) for i in range(0, len(rows), 32)]
    lengths = [row.length(gem.config.k) for row in rows]
    by_length = list(plan_batches(lengths, engine.batch_tokens))

    def run_dense(batches: Sequence[Sequence[int]]) -> None:
        embed_batches(engine.encoder, rows, batches, "right", "dense")

    methods: dict[str, Callable[[], object]] = {
        "gem-rag": lambda: gem.embed_documents(passages),
        "batches of 32 in order, T x T mask": lambda: run_dense(in_order),
        "batches by length, T x T mask": lambda: run_dense(by_length),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):  # the first is a warm-up
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if number:
                seconds[name].append(time.perf_counter() - start)

    table = Table("", "tokens/s", "gem-rag is faster by", title=f"{tokens} tokens, {model}")
    for name, times in seconds.items():
        ratios = [time / ours for time, ours in zip(times, seconds["gem-rag"], strict=True)]
        table.add_row(
            name, f"{tokens / statistics.median(times):.0f}", f"{statistics.median(ratios):.2f}"
        )
    console = Console()
    console.print(table)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    console.print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")


@torch.inference_mode()
def embed_batches(
    encoder: GemEncoder,
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    arrangement: Arrangement,
    lowering: LoweringName,
) -> None:
    """Embed batches of rows, given by their indices."""
    for batch in batches:
        encoder(Layout.build([rows[i] for i in batch], encoder.k, arrangement), lowering)


if __name__ == "__main__":
    typer.run(main)
