"""Ways to fuse the scores of vectors and of words, side by side for one model.

    python benchmarks/fusion.py [--model gem-tiny]
        [--pairs NAME=FILE] [--manual NAME=FOLDER] [--questions FILE=FOLDER] [--count 1500]

Corpora are those of `models.py`; in questions in a person's own words, any chunk of a document that
answers is right. Words are BM25. "shares, W" is `fuse_scores` with the weight W of words, of which
an index takes one; reciprocal ranks are Cormack, Clarke and Buettcher's. One line is recorded for
each corpus: mean reciprocal ranks.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from corpora import read_tasks, split
from measuring import record

import gem_rag
from gem_rag import Gem, Index
from gem_rag.evaluation.baselines import bm25, bm25_shares
from gem_rag.evaluation.rag_questions import read_questions
from gem_rag.rag.fusion import fuse_scores, reciprocal_rank_fusion

WEIGHTS = (0.2, 0.4, 0.6, 0.8)


def main(
    model: Annotated[str, typer.Option(help="what to measure")] = "gem-tiny",
    pairs: Annotated[list[str], typer.Option(help="NAME=FILE")] = [],  # noqa: B006
    manual: Annotated[list[str], typer.Option(help="NAME=FOLDER")] = [],  # noqa: B006
    questions: Annotated[list[str], typer.Option(help="FILE=FOLDER")] = [],  # noqa: B006
    count: Annotated[int, typer.Option(help="the most queries of each kind")] = 1500,
) -> None:
    """Measure and record every way on every corpus."""
    with gem_rag.load(model) as gem, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # long texts are truncated
        for name, (queries, documents, right) in read_tasks(pairs, manual, count).items():
            is_right = np.arange(len(documents)) == np.array(right)[:, None]
            _measure(gem, model, name, queries, documents, is_right)
        for file, folder in split(questions):
            _measure(gem, model, Path(file).stem, *_questions(gem, Path(file), Path(folder)))


def _measure(
    gem: Gem, model: str, name: str, queries: list[str], documents: list[str], is_right: Any
) -> None:
    cosines = gem.embed_queries(queries) @ gem.embed_documents(documents).T
    words, shares = bm25(queries, documents), bm25_shares(queries, documents)
    ways = {
        "vectors": cosines,
        "words": words,
        "reciprocal ranks": reciprocal_rank_fusion(cosines, np.where(words > 0, words, -np.inf)),
        **{f"shares, {w}": fuse_scores(cosines, shares, weight=w) for w in WEIGHTS},
    }
    figures = {way: round(_mrr(scores, is_right), 3) for way, scores in ways.items()}
    record("fusion", {"row": f"{Path(model).name}, {name}", "queries": len(queries), **figures})


def _mrr(scores: Any, is_right: Any) -> float:
    """The mean reciprocal rank of each query's first right document."""
    best_first = np.take_along_axis(is_right, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return float(np.mean(1 / (best_first.argmax(axis=1) + 1)))


def _questions(gem: Gem, file: Path, folder: Path) -> tuple[list[str], list[str], Any]:
    """Questions that have an answer, the chunks of the documents, and which of them are right."""
    asked = [question for question in read_questions(file) if question.answer]
    with TemporaryDirectory() as work:
        index = Index.open(Path(work) / "index", gem)
        index.sync([folder])
        hits = index.search(asked[0].question, len(index), ranking="vectors")
    is_right = [[hit.chunk.source in question.sources for hit in hits] for question in asked]
    return [q.question for q in asked], [hit.chunk.passage for hit in hits], np.array(is_right)


if __name__ == "__main__":
    typer.run(main)
