"""Vectors of chunks by themselves, and after reading what precedes them in their document.

    python benchmarks/chunk_context.py --train FOLDER --manual NAME=FOLDER
        [--model gem-tiny] [--steps 150] [--count 500]

A model goes on training on a folder's headings and first sentences twice, for as many steps on the
same pairs: with the texts by themselves, and with each read after those before it (`context` of
pairs), where its special tokens see the text alone. Then every model embeds the chunks of manuals
that it has not seen in both ways. A sentence that was taken out of a chunk must find the chunk. One
line is recorded for each manual, model and way: mean reciprocal rank with 95 % confidence interval
(bootstrap over sentences), its difference from the same model with chunks by themselves, and
the time of embedding over that of the chunks by themselves.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from measuring import reciprocal_figures, record

import gem_rag
from gem_rag import Document, Gem
from gem_rag.documents.document import Chunk
from gem_rag.documents.readers import read_paths
from gem_rag.documents.splitting import Splitter
from gem_rag.evaluation.known_item import reciprocal_ranks
from gem_rag.rag.reading import embed_readings, make_readings
from gem_rag.rag.sentences import split_sentences
from gem_rag.training.recipe import read_recipe
from gem_rag.training.run import train


def main(
    train_on: Annotated[Path, typer.Option("--train", help="documents to train on")],
    manual: Annotated[list[str], typer.Option(help="NAME=FOLDER of documents to measure on")],
    model: str = "gem-tiny",
    steps: int = 150,
    batch: int = 48,
    count: Annotated[int, typer.Option(help="sentences of each manual")] = 500,
    chunk_tokens: int = 128,
    context_tokens: int = 384,
    work: Path = Path("build/chunk-context"),
) -> None:
    """Train, and measure every model in both ways."""
    trained = {
        name: _train(model, train_on, own, chunk_tokens, steps, batch, work / name)
        for name, own in (("chunks alone", 0), ("chunks in context", context_tokens))
    }
    for named in manual:
        name, _, folder = named.partition("=")
        documents = [d for d in read_paths([Path(folder)], Path(folder)) if isinstance(d, Document)]
        for training, folder_or_name in {"nothing more": model, **trained}.items():
            with gem_rag.load(folder_or_name) as gem:
                gem.max_length = max(gem.max_length, context_tokens)  # all read as much
                task = _Task.draw(gem, documents, chunk_tokens, count)
                rows = _measure(gem, task, context_tokens)
            for way, figures in rows.items():
                row = f"{model} on {name}, trained with {training}: {way}"
                sizes = {
                    "sentences": len(task.sentences),
                    "of chunks": sum(map(len, task.passages)),
                }
                record("chunk_context", {"row": row, **sizes, **figures})


def _train(
    model: str, documents: Path, context: int, chunk: int, steps: int, batch: int, out: Path
) -> str:
    """The folder of a model that has gone on training."""
    if not out.exists():
        changes = {
            "data.documents.negatives": 0, "data.documents.pairs.questions": 0,
            "data.documents.pairs.passage_tokens": chunk,
            "data.documents.pairs.context_tokens": context,
            "max_length": max(chunk, context), "schedule.batch": batch, "schedule.steps": steps,
            "schedule.epochs": None, "evaluation.held_out": 0.0,
        }  # fmt: skip
        recipe = read_recipe("domain", changes).with_data([f"documents={documents}"])
        train(recipe, model, out, report=False)
    return str(out)


@dataclasses.dataclass(frozen=True)
class _Task:
    """Sentences, and the chunks that they were taken out of.

    Attributes:
        passages: Of each document, in order.
        sentences: What is asked.
        right: The chunk of each, by its number among all.
    """

    passages: list[list[str]]
    sentences: list[str]
    right: list[int]

    @classmethod
    def draw(cls, gem: Gem, documents: Sequence[Document], chunk_tokens: int, count: int) -> _Task:
        """Take a sentence out of each of some chunks, by chance and always the same ones."""
        splitter = Splitter(gem.tokenizer, chunk_tokens)
        chunks = [splitter.split(document) for document in documents]
        found = dict(_sentences([chunk for own in chunks for chunk in own]))
        drawn = sorted(Random(0).sample(sorted(found), min(count, len(found))))
        passages: list[list[str]] = []
        number = 0
        for own in chunks:
            passages.append([])
            for chunk in own:
                passages[-1].append(found[number][1] if number in drawn else chunk.passage)
                number += 1
        return cls(passages, [found[number][0] for number in drawn], drawn)


def _sentences(chunks: Sequence[Chunk]) -> Iterator[tuple[int, tuple[str, str]]]:
    """A sentence within each chunk that has two more, and the passage without it."""
    for number, chunk in enumerate(chunks):
        spans = list(split_sentences(chunk.text))
        start, stop = spans[len(spans) // 2]
        sentence = " ".join(chunk.text[start:stop].split())
        letters = sum(map(str.isalpha, sentence))
        if len(spans) > 2 and 8 <= len(sentence.split()) <= 40 and letters > 0.7 * len(sentence):
            rest = chunk.text[:start] + chunk.text[stop:]
            yield number, (sentence, dataclasses.replace(chunk, text=rest).passage)


def _measure(gem: Gem, task: _Task, context_tokens: int) -> dict[str, dict[str, Any]]:
    """Figures of both ways."""
    queries = gem.embed_queries(task.sentences)
    counter = Splitter(gem.tokenizer, context_tokens)
    found: dict[str, tuple[list[float], float]] = {}
    for way, tokens in (("alone", 0), ("in context", context_tokens)):
        readings = [
            reading
            for passages in task.passages
            for reading in make_readings(passages, counter.count_tokens, tokens)
        ]
        start = time.perf_counter()
        vectors = embed_readings(gem, readings)
        spent = time.perf_counter() - start
        found[way] = reciprocal_ranks(queries @ vectors.T, task.right).tolist(), spent
    baseline, seconds = found["alone"]
    return {
        way: {
            **reciprocal_figures(own, baseline, "alone"),
            "time over alone": round(spent / seconds, 2),
        }
        for way, (own, spent) in found.items()
    }


if __name__ == "__main__":
    typer.run(main)
