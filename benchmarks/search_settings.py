"""Ways to search, side by side for one model: vectors, words, both, and each of them reranked.

    python benchmarks/search_settings.py [--model gem-tiny]
        [--pairs NAME=FILE] [--manual NAME=FOLDER] [--count 200] [--documents 3000]

Corpora are those of `models.py`. A search gives the first 50 documents, as one in an index does:
by cosines, by BM25, or by the reciprocal ranks in both ("hybrid"); "+ rerank" puts the first 20 of
them in the order that the model finds best when it reads each one with the question. One line is
recorded for each corpus and setting, with 95 % confidence intervals (bootstrap over queries) of the
mean reciprocal rank and of its difference from that of vectors alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from corpora import Task, read_tasks, sample
from measuring import record
from rich.console import Console
from rich.table import Table

import gem_rag
from gem_rag import Gem
from gem_rag.core.arrays import FloatArray
from gem_rag.documents.document import Chunk
from gem_rag.evaluation.significance import interval, paired
from gem_rag.rag.fusion import fuse
from gem_rag.rag.hits import Hit
from gem_rag.rag.reranking import RERANKED, Method, rerank
from gem_rag.rag.words import WordIndex

_DEPTH = 50  # documents that a search gives

Search = Callable[[str], list[Hit]]


def main(
    model: Annotated[str, typer.Option(help="what to measure")] = "gem-tiny",
    pairs: Annotated[list[str], typer.Option(help="NAME=FILE")] = [],  # noqa: B006
    manual: Annotated[list[str], typer.Option(help="NAME=FOLDER")] = [],  # noqa: B006
    count: Annotated[int, typer.Option(help="queries to draw from each corpus")] = 200,
    documents: Annotated[int, typer.Option(help="the most documents of a corpus")] = 3000,
    most: Annotated[int, typer.Option(help="the most queries to draw from")] = 1500,
    method: Annotated[Method, typer.Option(help="of reranking")] = "likelihood",
) -> None:
    """Measure, print and record every setting on every corpus."""
    with gem_rag.load(model) as gem, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # long texts are truncated
        for name, task in read_tasks(pairs, manual, most).items():
            drawn = sample(task, count, documents)
            rows = _measure(gem, drawn, method)
            _show(f"{Path(model).name} on {name}", rows)
            for setting, figures in rows.items():
                row = f"{Path(model).name}, {name}: {setting}"
                sizes = {"queries": len(drawn[0]), "documents": len(drawn[1])}
                record("search_settings", {"row": row, **sizes, **figures}, shown=False)


def _measure(gem: Gem, task: Task, method: Method) -> dict[str, dict[str, Any]]:
    """Figures by setting."""
    queries, documents, right = task
    found = {
        setting: [_ask(search, query, place) for query, place in zip(queries, right, strict=True)]
        for setting, search in _settings(_Corpus(gem, documents), method).items()
    }
    baseline = [_reciprocal(rank) for rank, _ in found["vectors"]]
    return {setting: _figures(asked, baseline) for setting, asked in found.items()}


def _settings(corpus: _Corpus, method: Method) -> dict[str, Search]:
    firsts = {"vectors": corpus.by_vectors, "words": corpus.by_words, "hybrid": corpus.by_both}

    def reranked(search: Search) -> Search:
        def run(query: str) -> list[Hit]:
            hits = search(query)
            best = rerank(corpus.gem, query, hits[:RERANKED], method=method)
            return best + hits[RERANKED:]

        return run

    again = {f"{name} + rerank": reranked(firsts[name]) for name in ("vectors", "hybrid")}
    return {**firsts, **again}


class _Corpus:
    """Documents in memory, searched as an index searches its chunks.

    Args:
        gem: The model.
        documents: Texts; a hit's source is its text's number.
    """

    def __init__(self, gem: Gem, documents: Sequence[str]) -> None:
        self.gem = gem
        self._chunks = [
            Chunk(str(number), "", 0, len(text), text) for number, text in enumerate(documents)
        ]
        self._vectors = gem.embed_documents(documents)
        self._words = WordIndex(documents)

    def by_vectors(self, query: str) -> list[Hit]:
        """The documents with the greatest cosines, best first."""
        cosines = self._cosines(query)
        return self._hits(_nearest(cosines), cosines)

    def by_words(self, query: str) -> list[Hit]:
        """By BM25; documents that share no word are not found."""
        return self._hits(self._with_words(query), self._cosines(query))

    def by_both(self, query: str) -> list[Hit]:
        """By reciprocal ranks in both."""
        cosines = self._cosines(query)
        rankings = _nearest(cosines), self._with_words(query)
        fused = fuse(*(list(map(str, ranking)) for ranking in rankings))
        return self._hits(list(map(int, fused[:_DEPTH])), cosines)

    def _cosines(self, query: str) -> FloatArray:
        cosines: FloatArray = self._vectors @ self.gem.embed_queries([query])[0]
        return cosines

    def _with_words(self, query: str) -> list[int]:
        [rows], [scores] = self._words.search([query], _DEPTH)
        found: list[int] = rows[scores > 0].tolist()
        return found

    def _hits(self, numbers: Sequence[int], cosines: FloatArray) -> list[Hit]:
        return [Hit(self._chunks[number], float(cosines[number])) for number in numbers]


def _nearest(cosines: FloatArray) -> list[int]:
    nearest: list[int] = np.argsort(-cosines, kind="stable")[:_DEPTH].tolist()
    return nearest


def _ask(search: Search, query: str, right: int) -> tuple[int, float]:
    """The rank of the right document, 0 if it is not found, and milliseconds."""
    start = time.perf_counter()
    sources = [hit.chunk.source for hit in search(query)]
    spent = (time.perf_counter() - start) * 1000
    return (sources.index(str(right)) + 1 if str(right) in sources else 0), spent


def _reciprocal(rank: int) -> float:
    return 1 / rank if rank else 0.0


def _figures(asked: Sequence[tuple[int, float]], baseline: Sequence[float]) -> dict[str, Any]:
    ranks, times = zip(*asked, strict=True)
    reciprocals = [_reciprocal(rank) for rank in ranks]
    difference = paired(baseline, reciprocals)
    return {
        "mrr": round(float(np.mean(reciprocals)), 3),
        "mrr from to": [round(end, 3) for end in interval(reciprocals)],
        "over vectors": round(difference.value, 3),
        "over vectors from to": [round(difference.low, 3), round(difference.high, 3)],
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
