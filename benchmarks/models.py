"""The models to choose from, side by side: retrieval, answers, size and speed.

    python benchmarks/models.py [--model gem-tiny] [--model FOLDER] [--model bm25] ...
        [--pairs NAME=FILE] [--manual NAME=FOLDER] [--questions FILE=FOLDER] [--style STYLE] ...
        [--work FOLDER]

A model is a GEM-trained one by name or folder, a sentence-transformers folder, or `bm25`. It is
measured on pairs (JSON lines of query and document, as `python -m gem_tiny pairs` holds them out),
on manuals (a heading must find the text below it), and by its answers, as `answers.py` does. One
line is recorded for each model, and one for its answers to each file of questions in each style;
`tables.py` makes tables of them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import answers
import torch
import typer
from corpora import Task, read_tasks
from measuring import record

import gem_rag
from gem_rag import Gem
from gem_rag.core.auto_model import load_language_model
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint
from gem_rag.evaluation.baselines import SentenceTransformer, bm25, bm25_shares
from gem_rag.evaluation.known_item import evaluate_known_items
from gem_rag.rag.fusion import fuse_scores

Search = Callable[[Sequence[str], Sequence[str]], Any]  # similarities [queries, documents]
_CHECKED = ("Paris is the capital of France.", "def add(a, b):\n    return a + b\n")


def main(
    model: Annotated[list[str], typer.Option(help="what to measure")] = ["gem-tiny", "bm25"],  # noqa: B006
    pairs: Annotated[list[str], typer.Option(help="NAME=FILE")] = [],  # noqa: B006
    manual: Annotated[list[str], typer.Option(help="NAME=FOLDER")] = [],  # noqa: B006
    questions: Annotated[list[str], typer.Option(help="FILE=FOLDER")] = [],  # noqa: B006
    style: Annotated[list[str], typer.Option(help="of answers; default the model's own")] = [],  # noqa: B006
    work: Annotated[Path | None, typer.Option(help="where to keep indexes")] = None,
    count: Annotated[int, typer.Option(help="the most queries of each kind")] = 1500,
) -> None:
    """Measure and record every model."""
    tasks = read_tasks(pairs, manual, count)
    for name in model:
        if name == "bm25":
            record("models", {"row": "BM25", **_retrieval(bm25, tasks)})
        elif (Path(name) / "modules.json").exists():
            record("models", _sentence_transformer(Path(name), tasks))
        else:
            if tasks:
                record("models", _gem(name, tasks))
            answers.measure(name, questions, style, work)


def _retrieval(search: Search, tasks: dict[str, Task]) -> dict[str, Any]:
    """The mean reciprocal rank in each task, alone and fused with BM25."""
    figures = {}
    for name, (queries, documents, right) in tasks.items():
        scores = search(queries, documents)
        figures[f"{name} mrr"] = round(evaluate_known_items(scores, right).mrr, 3)
        if search is not bm25:
            fused = fuse_scores(scores, bm25_shares(queries, documents))
            figures[f"{name} hybrid"] = round(evaluate_known_items(fused, right).mrr, 3)
    return figures


def _sentence_transformer(folder: Path, tasks: dict[str, Task]) -> dict[str, Any]:
    model = SentenceTransformer(folder)
    embedder = _Timed(model)
    figures = _retrieval(embedder.similarities, tasks)
    return {
        "row": folder.parent.name if folder.name == "model" else folder.name,
        "megabytes": _megabytes(folder), "dim": model.dim, "context": model.max_length, **figures,
        "texts per second": embedder.rate(),
    }  # fmt: skip


def _gem(name: str, tasks: dict[str, Task]) -> dict[str, Any]:
    checkpoint = open_checkpoint(name)
    base = checkpoint.base.name if checkpoint.base else checkpoint.config.base_model
    with gem_rag.load(name) as gem, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # long texts are truncated, for all models alike
        embedder = _Timed(gem)
        figures = _retrieval(embedder.similarities, tasks)
        rate = embedder.rate()
    return {
        "row": Path(name).name, "base": base, "megabytes": _megabytes(checkpoint.path),
        "dim": gem.dim, "context": gem.max_length, **figures, "texts per second": rate,
        "generation change": _logit_change(checkpoint),
    }  # fmt: skip


class _Timed:
    """A model that embeds, and the rate at which it embedded documents."""

    def __init__(self, model: Gem | SentenceTransformer) -> None:
        self._model, self._texts, self._seconds = model, 0, 0.0

    def similarities(self, queries: Sequence[str], documents: Sequence[str]) -> Any:
        """Cosines, [queries, documents]."""
        start = time.perf_counter()
        vectors = self._model.embed_documents(list(documents))
        self._seconds += time.perf_counter() - start
        self._texts += len(documents)
        return self._model.embed_queries(list(queries)) @ vectors.T

    def rate(self) -> float:
        """Documents a second."""
        return round(self._texts / max(self._seconds, 1e-9), 1)


def _logit_change(checkpoint: Checkpoint) -> float:
    """The largest difference between the base's logits and the loaded model's."""
    base = load_language_model(checkpoint.path, dtype=torch.float32).eval()
    with gem_rag.load(checkpoint.path) as gem, gem.language_model() as loaded:
        ids = [torch.tensor([gem.tokenize(text)]) for text in _CHECKED]
        with torch.inference_mode():
            return max(float((base(i).logits - loaded(i).logits).abs().max()) for i in ids)


def _megabytes(folder: Path) -> int:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e6)


if __name__ == "__main__":
    typer.run(main)
