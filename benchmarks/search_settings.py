"""Ways to search, side by side for one model: vectors, words, both, and each of them reranked.

    python benchmarks/search_settings.py [--model gem-tiny]
        [--pairs NAME=FILE] [--manual NAME=FOLDER] [--count 200] [--documents 3000]
        [--setting NAME ...]

Corpora are those of `models.py`, each in an index. A search gives the first 50 chunks: by cosines,
by BM25, or by the scores of both ("hybrid"); "+ rerank" puts the first 20 of them in the
order that the model finds best when it reads each one with the question; "in a quarter" searches
the quarter of the documents, by their metadata, that holds the right one. One line is
recorded for each corpus and setting, with 95 % confidence intervals (bootstrap over queries) of the
mean reciprocal rank and of its difference from that of vectors alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, get_args

import numpy as np
import typer
from corpora import Task, read_tasks, sample
from measuring import reciprocal_figures, record
from rich.console import Console
from rich.table import Table

import gem_rag
from gem_rag import Document, Gem, Hit, Index, Ranking
from gem_rag.rag.reranking import RERANKED, Method, rerank

_DEPTH = 50  # chunks that a search gives

_PARTS = 4  # of the documents, to one of which a filter leads

Search = Callable[[str, int], list[Hit]]  # of a query and the right document's number


def main(
    model: Annotated[str, typer.Option(help="what to measure")] = "gem-tiny",
    pairs: Annotated[list[str], typer.Option(help="NAME=FILE")] = [],  # noqa: B006
    manual: Annotated[list[str], typer.Option(help="NAME=FOLDER")] = [],  # noqa: B006
    count: Annotated[int, typer.Option(help="queries to draw from each corpus")] = 200,
    documents: Annotated[int, typer.Option(help="the most documents of a corpus")] = 3000,
    most: Annotated[int, typer.Option(help="the most queries to draw from")] = 1500,
    method: Annotated[Method, typer.Option(help="of reranking")] = "likelihood",
    setting: Annotated[list[str], typer.Option(help="these beside vectors, not all")] = [],  # noqa: B006
) -> None:
    """Measure, print and record every setting on every corpus."""
    with gem_rag.load(model) as gem, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # long texts are truncated
        for name, task in read_tasks(pairs, manual, most).items():
            drawn = sample(task, count, documents)
            rows = _measure(gem, drawn, method, setting)
            _show(f"{Path(model).name} on {name}", rows)
            for one, figures in rows.items():
                row = f"{Path(model).name}, {name}: {one}"
                sizes = {"queries": len(drawn[0]), "documents": len(drawn[1])}
                record("search_settings", {"row": row, **sizes, **figures}, shown=False)


def _measure(
    gem: Gem, task: Task, method: Method, chosen: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Figures by setting."""
    queries, documents, right = task
    with TemporaryDirectory() as folder:
        index = Index.open(folder, gem)
        index.sync(
            Document(str(number), text, metadata={"part": number % _PARTS})
            for number, text in enumerate(documents)
        )
        found = {
            setting: [
                _ask(search, query, place) for query, place in zip(queries, right, strict=True)
            ]
            for setting, search in _settings(index, method).items()
            if not chosen or setting in ("vectors", *chosen)
        }
    baseline = [_reciprocal(rank) for rank, _ in found["vectors"]]
    return {setting: _figures(asked, baseline) for setting, asked in found.items()}


def _settings(index: Index, method: Method) -> dict[str, Search]:
    def ranked(ranking: Ranking) -> Search:
        return lambda query, right: index.search(query, _DEPTH, ranking=ranking)

    def filtered(ranking: Ranking) -> Search:
        return lambda query, right: index.search(
            query, _DEPTH, ranking=ranking, where={"part": right % _PARTS}
        )

    def reranked(search: Search) -> Search:
        def run(query: str, right: int) -> list[Hit]:
            hits = search(query, right)
            best = rerank(index.gem, query, hits[:RERANKED], method=method)
            return best + hits[RERANKED:]

        return run

    firsts = {name: ranked(name) for name in get_args(Ranking)}
    again = {f"{name} + rerank": reranked(firsts[name]) for name in ("vectors", "hybrid")}
    narrowed = {f"{name} in a quarter": filtered(name) for name in get_args(Ranking)}
    return {**firsts, **again, **narrowed}


def _ask(search: Search, query: str, right: int) -> tuple[int, float]:
    """The rank of the right document, 0 if it is not found, and milliseconds."""
    start = time.perf_counter()
    sources = list(dict.fromkeys(hit.chunk.source for hit in search(query, right)))
    spent = (time.perf_counter() - start) * 1000
    return (sources.index(str(right)) + 1 if str(right) in sources else 0), spent


def _reciprocal(rank: int) -> float:
    return 1 / rank if rank else 0.0


def _figures(asked: Sequence[tuple[int, float]], baseline: Sequence[float]) -> dict[str, Any]:
    ranks, times = zip(*asked, strict=True)
    reciprocals = [_reciprocal(rank) for rank in ranks]
    return {
        **reciprocal_figures(reciprocals, baseline, "vectors"),
        "recall 1": _share_within(ranks, 1),
        "recall 5": _share_within(ranks, 5),
        "ms a query": round(float(np.mean(times)), 1),
    }


def _share_within(ranks: Sequence[int], k: int) -> float:
    """The share of queries whose right document is among the first k."""
    return round(sum(1 <= rank <= k for rank in ranks) / len(ranks), 3)


def _show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    table = Table("setting", *next(iter(rows.values())), title=title)
    for setting, figures in rows.items():
        table.add_row(setting, *map(str, figures.values()))
    Console(width=max(110, Console().width)).print(table)


if __name__ == "__main__":
    typer.run(main)
