"""What retrieval is measured on: pairs of query and document, and manuals."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

from gem_rag.evaluation.collection import from_documents
from gem_rag.evaluation.known_item import drop_duplicates

Task = tuple[list[str], list[str], list[int]]  # queries, documents, each query's document


def read_tasks(pairs: Sequence[str], manuals: Sequence[str], count: int) -> dict[str, Task]:
    """Tasks by name.

    Args:
        pairs: NAME=FILE each: JSON lines of query and document.
        manuals: NAME=FOLDER each: a heading must find the text below it.
        count: The most queries of each.
    """
    tasks = {name: _read_pairs(Path(file), count) for name, file in split(pairs)}
    return tasks | {name: _read_manual(Path(folder), count) for name, folder in split(manuals)}


def sample(task: Task, count: int, size: int) -> Task:
    """Some of a task's queries, drawn the same every time, and a corpus small enough to embed: what
    they ask for, and others of its documents.

    Args:
        task: The task.
        count: The most queries.
        size: The most documents, but never fewer than are asked for.
    """
    queries, documents, right = task
    draw = random.Random(0)
    asked = sorted(draw.sample(range(len(queries)), min(count, len(queries))))
    wanted = {right[query] for query in asked}
    others = [document for document in range(len(documents)) if document not in wanted]
    extra = draw.sample(others, min(len(others), max(0, size - len(wanted))))
    kept = sorted([*wanted, *extra])
    places = {document: place for place, document in enumerate(kept)}
    return (
        [queries[query] for query in asked],
        [documents[document] for document in kept],
        [places[right[query]] for query in asked],
    )


def split(options: Sequence[str]) -> list[tuple[str, str]]:
    """(before, after) the last equals sign."""
    return [(before, after) for before, _, after in (o.rpartition("=") for o in options)]


def _read_pairs(file: Path, count: int) -> Task:
    with file.open(encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in itertools.islice(lines, count)]
    documents, right = drop_duplicates([pair["document"] for pair in pairs])
    return [pair["query"] for pair in pairs], documents, right


def _read_manual(folder: Path, count: int) -> Task:
    collection = from_documents([folder], most=count)
    places = {id: place for place, id in enumerate(collection.documents)}
    right = [places[id] for id in collection.queries]
    return list(collection.queries.values()), list(collection.documents.values()), right
