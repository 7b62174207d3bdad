"""How long one query takes to embed, beside sentence-transformers and a plain forward pass.

The same random Llama in one process, a query at a time, from text to vector, in turn.

    python benchmarks/query_latency.py [--shape 135M ...] [--count N]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import numpy as np
import torch
import typer
from embedding import both
from measuring import (
    DEVICE,
    SHAPES,
    launches,
    matrix_product_rate,
    record,
    timed,
)
from sentence_transformers import SentenceTransformer

from gem_rag import Gem
from gem_rag.core.layout import Layout, Row

QUERIES = ["how to open a file", "what does yield do", "sort a list of dicts by a key",
           "why is my loop slow", "read a csv file with a header line"]  # fmt: skip


def main(
    shape: Annotated[list[str], typer.Option()] = ["7M", "135M"],  # noqa: B006
    count: int = 100,
    k: int = 1,
    rank: int = 32,
) -> None:
    """Record the median and the 99th percentile, in milliseconds, and launched operations."""
    for name in shape:
        with both(SHAPES[name], k, rank) as (gem, peer):
            measure(name, gem, peer, count)


def measure(shape: str, gem: Gem, peer: SentenceTransformer, count: int) -> None:
    ways: dict[str, Callable[[str], object]] = {
        "gem_rag": lambda query: gem.embed_queries([query]),
        "sentence_transformers": lambda query: peer.encode([query]),
        "plain_forward": lambda query: plain_forward(gem, query),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(count + 3):
        query = QUERIES[number % len(QUERIES)]
        for way, run in ways.items():
            taken = timed(partial(run, query))
            if number >= 3:  # after a warm-up
                seconds[way].append(taken)
    figures: dict[str, object] = {"shape": shape, "count": count, "k": gem.config.k}
    for way, taken_by_way in seconds.items():
        for percent in (50, 99):
            milliseconds = 1000 * float(np.percentile(taken_by_way, percent))
            figures[f"{way}_p{percent}_ms"] = round(milliseconds, 2)
    layout = Layout.build([Row.whole(gem.tokenize(QUERIES[0]))], gem.config.k)
    encoder = gem._engine.encoder
    with torch.inference_mode():
        figures["launches"] = launches(lambda: encoder(layout))
        figures["plain_forward_launches"] = launches(lambda: plain_forward(gem, QUERIES[0]))
    figures["tflops"] = round(matrix_product_rate() / 1e12, 3)
    record("query_latency", figures)


@torch.inference_mode()
def plain_forward(gem: Gem, query: str) -> None:
    ids = torch.tensor([gem.tokenize(query)], device=DEVICE)
    with gem.language_model() as model:
        model.base_model(input_ids=ids, use_cache=False).last_hidden_state.cpu()


if __name__ == "__main__":
    typer.run(main)
