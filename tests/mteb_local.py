"""mteb tasks without a network: one of each kind, from the same few questions and passages."""

from __future__ import annotations

from itertools import product
from typing import Any

from datasets import Dataset, DatasetDict
from mteb import AbsTask, TaskMetadata
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

TOPICS = [
    [
        ("How do I add an element to a list?", "list.append(x) adds an item to the end of a list."),
        ("Which method sorts a list?", "list.sort() sorts the items of a list in place."),
        ("How is a list reversed?", "list.reverse() reverses the elements of a list in place."),
        ("How do I count how often an item is in a list?", "list.count(x) returns the number of "
         "times an item appears in a list."),
        ("How do I remove the last item of a list?", "list.pop() removes the item at the end of a "
         "list and returns it."),
        ("How do I copy a list?", "list.copy() returns a shallow copy of a list."),
    ],
    [
        ("How do I open a file for reading?", "open(path) opens a file and returns a file object."),
        ("How do I delete a file?", "os.remove(path) removes the file at a path."),
        ("How do I rename a file?", "os.rename(old, new) renames a file or a directory."),
        ("How do I find out whether a path is a directory?", "os.path.isdir(path) returns True if "
         "a path is an existing directory."),
        ("How do I make a new directory?", "os.mkdir(path) creates a directory."),
        ("How large is a file?", "os.path.getsize(path) returns the size of a file in bytes."),
    ],
    [
        ("How do I wait for a thread to end?", "Thread.join() waits until a thread terminates."),
        ("How do I start a thread?", "Thread.start() starts the activity of a thread."),
        ("How do I acquire a lock?", "Lock.acquire() acquires a lock, and blocks other threads."),
        ("How do I release a lock?", "Lock.release() releases a lock that a thread holds."),
        ("Which thread runs now?", "threading.current_thread() returns the current thread."),
        ("How many threads are alive?", "threading.active_count() returns the number of threads "
         "that are alive."),
    ],
]  # fmt: skip
PAIRS = [pair for topic in TOPICS for pair in topic]
TOPIC_OF = [number for number, topic in enumerate(TOPICS) for _ in topic]


def described(name: str, kind: str, main_score: str, **more: Any) -> TaskMetadata:
    return TaskMetadata(
        **{
            "name": name, "type": kind, "main_score": main_score, "description": name,
            "dataset": {"path": "local/none", "revision": "1"}, "reference": None,
            "category": "t2t", "modalities": ["text"], "eval_splits": ["test"],
            "eval_langs": ["eng-Latn"], "date": ("2024-01-01", "2024-01-02"), "domains": [],
            "task_subtypes": [], "license": "mit", "annotations_creators": "derived",
            "dialect": [], "sample_creation": "created", "bibtex_citation": "",
        }
        | more
    )  # fmt: skip


class Retrieval(AbsTaskRetrieval):
    """Every question must find its passage."""

    metadata = described("LocalRetrieval", "Retrieval", "ndcg_at_10",
                        prompt={"query": "Find the method"})  # fmt: skip

    def load_data(self, **_: Any) -> None:
        self.dataset = {"default": {"test": self.split(None)}}
        self.data_loaded = True

    @staticmethod
    def split(top_ranked: dict[str, list[str]] | None) -> RetrievalSplitData:
        numbers = range(len(PAIRS))
        return RetrievalSplitData(
            queries=Dataset.from_list([{"id": f"q{i}", "text": PAIRS[i][0]} for i in numbers]),
            corpus=Dataset.from_list(
                [{"id": f"d{i}", "text": PAIRS[i][1], "title": ""} for i in numbers]
            ),
            relevant_docs={f"q{i}": {f"d{i}": 1} for i in numbers},
            top_ranked=top_ranked,
        )


class Reranking(AbsTaskRetrieval):
    """Every question must put its passage before others of its topic."""

    metadata = described("LocalReranking", "Reranking", "map_at_1000")

    def load_data(self, **_: Any) -> None:
        near = {f"q{i}": [f"d{j}" for j, topic in enumerate(TOPIC_OF) if topic == TOPIC_OF[i]]
                for i in range(len(PAIRS))}  # fmt: skip
        self.dataset = {"default": {"test": Retrieval.split(near)}}
        self.data_loaded = True


def _is_own(first: int, second: int) -> float:
    """2 for a question and its passage, 1 for the same topic, 0 for another."""
    return float((first == second) + (TOPIC_OF[first] == TOPIC_OF[second]))


COMBINED = [(i, j) for i, j in product(range(len(PAIRS)), repeat=2) if (i * 7 + j) % 3 == 0]


class STS(AbsTaskSTS):
    """A question and its passage are more alike than others."""

    metadata = described("LocalSTS", "STS", "cosine_spearman")
    min_score, max_score = 0, 2

    def load_data(self, **_: Any) -> None:
        rows = {"sentence1": [PAIRS[i][0] for i, _ in COMBINED],
                "sentence2": [PAIRS[j][1] for _, j in COMBINED],
                "score": [_is_own(i, j) for i, j in COMBINED]}  # fmt: skip
        self.dataset = DatasetDict(test=Dataset.from_dict(rows))
        self.data_loaded = True


class PairClassification(AbsTaskPairClassification):
    """Questions belong to passages of their topic, and to no other."""

    metadata = described("LocalPairs", "PairClassification", "max_ap")

    def load_data(self, **_: Any) -> None:
        rows = {"sentence1": [PAIRS[i][0] for i, _ in COMBINED],
                "sentence2": [PAIRS[j][1] for _, j in COMBINED],
                "labels": [int(_is_own(i, j) > 0) for i, j in COMBINED]}  # fmt: skip
        self.dataset = DatasetDict(test=Dataset.from_dict(rows))
        self.data_loaded = True


class Classification(AbsTaskClassification):
    """The topic of a question, learnt from passages."""

    metadata = described("LocalClassification", "Classification", "accuracy")
    n_experiments = 2

    def load_data(self, **_: Any) -> None:
        self.dataset = DatasetDict(
            train=Dataset.from_dict({"text": [p for _, p in PAIRS], "label": TOPIC_OF}),
            test=Dataset.from_dict({"text": [q for q, _ in PAIRS], "label": TOPIC_OF}),
        )
        self.data_loaded = True


class Clustering(AbsTaskClustering):
    """Passages by topic."""

    metadata = described("LocalClustering", "Clustering", "v_measure")
    max_fraction_of_documents_to_embed = None
    n_clusters = 2

    def load_data(self, **_: Any) -> None:
        rows = {"sentences": [passage for _, passage in PAIRS], "labels": TOPIC_OF}
        self.dataset = DatasetDict(test=Dataset.from_dict(rows))
        self.data_loaded = True


KINDS = (Retrieval, Reranking, STS, PairClassification, Classification, Clustering)


def local_tasks() -> list[AbsTask]:
    """One of each kind."""
    return [kind() for kind in KINDS]
