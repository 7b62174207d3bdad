"""Retrieval on a collection: systems rank its documents, a metrics library says how well."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import faiss
import ir_measures
import numpy as np
from ir_measures import RR, R, Success, nDCG

from gem_rag.evaluation.baselines import (
    Embedder,
    FloatArray,
    baseline,
    bm25_hits,
)
from gem_rag.evaluation.collection import Collection
from gem_rag.evaluation.scores import Record, Score, this_machine
from gem_rag.evaluation.significance import interval
from gem_rag.model import Gem

DEPTH = 100  # documents that are ranked for each query
METRICS = {"ndcg_at_10": nDCG @ 10, "recall_at_1": Success @ 1, "recall_at_10": R @ 10,
           "recall_at_100": R @ 100, "mrr_at_10": RR @ 10}  # fmt: skip

# Rows of documents and of their scores for each query, best first: [queries, DEPTH].
Ranking = tuple[np.ndarray, np.ndarray]
System = Callable[[Sequence[str], Sequence[str]], Ranking]


def evaluate_retrieval(
    gem: Gem,
    collection: Collection,
    baselines: Sequence[str] = (),
    *,
    name: str | None = None,
) -> Record:
    """Scores of the model and of baselines on a collection.

    baselines: "bm25", "mean-pooling" (of the same weights), or a sentence-transformers folder.
    name: of the model in the report; default its own.

    Raises InputError for any other baseline.
    """
    own = name or Path(gem.name).name
    systems: dict[str, System] = {own: embedded(gem)}
    for given in baselines:
        if given == "bm25":
            systems[given] = partial(bm25_hits, depth=DEPTH)
        else:
            model = baseline(given, gem.name, gem.max_length)
            systems[Path(given).name] = embedded(model)
    scores, timings = [], {}
    for system, rank in systems.items():
        start = time.perf_counter()
        scores += score(collection, system, rank)
        timings[f"retrieval {collection.name}: {system}"] = time.perf_counter() - start
    settings = {"documents": len(collection.documents), "queries": len(collection.queries)}
    return Record(own, tuple(scores), (), {f"retrieval {collection.name}": settings}, timings,
                  this_machine())  # fmt: skip


def score(collection: Collection, system: str, rank: System) -> list[Score]:
    """One score for each metric, with every query's value."""
    ids = list(collection.documents)
    rows, values = rank(list(collection.queries.values()), list(collection.documents.values()))
    run = {
        query: {ids[row]: float(value) for row, value in zip(*best, strict=True) if row >= 0}
        for query, best in zip(collection.queries, zip(rows, values, strict=True), strict=True)
    }
    found = {metric: dict.fromkeys(collection.queries, 0.0) for metric in METRICS.values()}
    for item in ir_measures.iter_calc(list(METRICS.values()), collection.relevant, run):
        found[item.measure][item.query_id] = float(item.value)
    scores = []
    for metric, measure in METRICS.items():
        items = tuple(found[measure].values())
        low, high = interval(items)
        scores.append(Score("retrieval", collection.name, metric, system, float(np.mean(items)),
                            items, low, high))  # fmt: skip
    return scores


def embedded(model: Embedder) -> System:
    """Ranks by a model's embeddings."""
    return lambda queries, documents: exact_search(
        model.embed_queries(queries), model.embed_documents(documents)
    )


def exact_search(queries: FloatArray, documents: FloatArray) -> Ranking:
    """Exact search among unit vectors, whose memory does not grow with queries times documents."""
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents)
    values, rows = index.search(queries, min(DEPTH, len(documents)))
    return rows, values
