"""Retrieval on held-out docstrings: a model, mean pooling of the same weights, and BM25.

The summary line of 1,500 docstrings must find the rest of its own among all 1,500. The modules
are held out from everything gem-tiny is trained on (md5 of the dotted name, multiple of 25).

    python benchmarks/docstring_retrieval.py --packages FOLDER

FOLDER holds installed packages: `pip install --no-deps --target FOLDER -r
gem_rag/training/tiny/packages.txt`. Without it only the standard library's docstrings are used.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import gem_rag
from gem_rag.checkpoint import open_checkpoint
from gem_rag.evaluation.baselines import bm25, mean_pooled
from gem_rag.evaluation.retrieval import RetrievalFigures, known_item
from gem_rag.training.tiny.corpus import held_out, pairs, read_corpus

QUERY_TOKENS, DOCUMENT_TOKENS = 64, 128


def main(
    model: str = "gem-tiny",
    packages: Annotated[Path | None, typer.Option(help="a folder of installed packages")] = None,
    count: int = 1500,
) -> None:
    """Print a table of R@1, R@10 and MRR."""
    corpus = read_corpus([packages] if packages else [])
    kept = [pair for pair in pairs(corpus) if held_out(pair.module)][:count]
    gem = gem_rag.load(model)
    queries = _cut(gem, [pair.summary for pair in kept], QUERY_TOKENS)
    documents = _cut(gem, [pair.rest for pair in kept], DOCUMENT_TOKENS)

    start = time.perf_counter()
    vectors = gem.embed_queries(queries), gem.embed_documents(documents)
    seconds = time.perf_counter() - start
    tokens = sum(map(gem.count_tokens, [*queries, *documents]))
    ids = [[gem.encode(text) for text in texts] for texts in (queries, documents)]
    rows = {
        f"{model} (k = {gem.config.k})": _figures(*vectors),
        "mean pooling, untrained": _figures(*mean_pooled(open_checkpoint(gem.name).path, *ids)),
        "BM25": known_item(bm25(queries, documents)),
    }
    table = Table("", "R@1", "R@10", "MRR", title=f"{len(kept)} held-out docstrings")
    for name, found in rows.items():
        table.add_row(name, *(f"{x:.3f}" for x in (found.recall_1, found.recall_10, found.mrr)))
    console = Console()
    console.print(table)
    console.print(
        f"{tokens} tokens embedded in {seconds:.1f} s ({tokens / seconds:.0f} tokens/s, "
        f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__})"
    )


def _cut(gem: gem_rag.Gem, texts: list[str], tokens: int) -> list[str]:
    """Beginnings of texts, so that every method reads the same words."""
    return [gem.tokenizer.decode(gem.encode(text)[:tokens]) for text in texts]


def _figures(queries: np.ndarray, documents: np.ndarray) -> RetrievalFigures:
    return known_item(queries @ documents.T)


if __name__ == "__main__":
    typer.run(main)
