"""Embedding throughput: `Gem.embed_documents` beside plainer ways to run the same model.

The peers run in the same process on the same texts, in turn, several rounds; the ratio of each
round is what to quote. Peers: transformers in batches of 32 as texts come, padded, with a
T x T mask (what one writes first); and the same batches as gem-rag's with the T x T mask.

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

import gem_rag
from gem_rag.core.attention import LoweringName
from gem_rag.core.encoder import GemEncoder
from gem_rag.core.layout import Arrangement, Layout, Row, plan_batches
from gem_rag.documents.document import Document
from gem_rag.documents.splitting import Splitter, chunks


def main(model: str = "gem-tiny", texts: int = 1000, rounds: int = 3) -> None:
    """Print tokens per second and ratios."""
    gem = gem_rag.load(model)
    splitter = Splitter(gem.tokenizer, min(256, gem.max_length))
    documents = [Document(name, text) for name, text in topics.items()]
    passages = [c.passage for d in documents for c in chunks(d, splitter.spans(d))][:texts]
    rows = [Row.whole(gem.encode(passage)) for passage in passages]
    tokens = sum(len(row.text) for row in rows)
    encoder: GemEncoder = gem._engine._encoder  # the peers run the same weights

    as_they_come = [list(range(i, min(i + 32, len(rows)))) for i in range(0, len(rows), 32)]
    by_length = list(plan_batches([row.length(gem.config.k) for row in rows], gem._batch_tokens))
    ways: dict[str, Callable[[], object]] = {
        "gem-rag": lambda: gem.embed_documents(passages),
        "batches of 32 as they come, T x T mask": lambda: run(
            encoder, rows, as_they_come, "right", "dense"
        ),
        "batches by length, T x T mask": lambda: run(encoder, rows, by_length, "right", "dense"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first is a warm-up
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)

    table = Table("", "tokens/s", "gem-rag is faster by", title=f"{tokens} tokens, {model}")
    for name, times in seconds.items():
        ratios = [other / own for own, other in zip(seconds["gem-rag"], times, strict=True)]
        table.add_row(
            name, f"{tokens / statistics.median(times):.0f}", f"{statistics.median(ratios):.2f}"
        )
    console = Console()
    console.print(table)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    console.print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")


@torch.inference_mode()
def run(
    encoder: GemEncoder,
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    arrangement: Arrangement,
    how: LoweringName,
) -> None:
    for batch in batches:
        encoder(Layout.build([rows[i] for i in batch], encoder.k, arrangement), how)


if __name__ == "__main__":
    typer.run(main)
