"""mteb's six kinds of tasks, and one of MMLU's form, made of a team's own documents.

Headings and the texts below them say by themselves what belongs together: a heading and its text,
two texts of one file.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from random import Random
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

from gem_rag.errors import InputError
from gem_rag.evaluation.baselines import bm25_hits
from gem_rag.evaluation.collection import Collection

CANDIDATES = 10  # that a heading's text is ranked among, and that pairs are taken from
_SMALLEST_FILE = 8  # texts of a file that is a class, and a subject
_MOST_FILES = 20
_MOST = 400  # pairs, and texts to tell files apart by
_LONGEST = 1000  # characters of a text
_SHOT_CHARACTERS = 280  # of a text in a question with four options


def document_tasks(collection: Collection, seed: int = 0) -> list[AbsTask]:
    """A task of each kind: retrieval, reranking, similarity, pairs, classification, clustering.

    collection: of documents, as `from_documents` makes it.

    Raises InputError if no two files have enough texts to tell apart.
    """
    texts = _Texts(collection, seed)
    return [kind(texts) for kind in (_Retrieval, _Reranking, _STS, _Pairs, _Classification,
                                     _Clustering)]  # fmt: skip


def write_choices(collection: Collection, folder: Path, shots: int = 5, seed: int = 0) -> str:
    """Write a task of MMLU's form for lm_eval: which of four headings of a file does a text stand
    under? Each file is a subject. The name of the group of all subjects.

    Raises InputError as `document_tasks`.
    """
    texts, name = _Texts(collection, seed), "own_choices"
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for number, (file, ids) in enumerate(texts.files.items()):
        rows = [texts.choice(id, ids) for id in ids if id in collection.queries]
        if len(rows) < shots + 3:
            continue
        stem = re.sub(r"\W+", "_", Path(file).stem)
        names.append(f"{name}_{number}_{stem}")
        splits = {"dev": rows[:shots], "test": rows[shots:]}
        files = {}
        for split, kept in splits.items():
            files[split] = str((folder / f"{number}.{split}.jsonl").resolve())
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in kept))
        (folder / f"{names[-1]}.yaml").write_text(json.dumps({
            "task": names[-1],
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": shots,
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\n"
                           "C. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1},
        }))  # fmt: skip  # JSON is YAML
    if not names:
        raise InputError(f"no file has the {shots + 3} texts under headings that questions need")
    (folder / f"{name}.yaml").write_text(json.dumps({
        "group": name, "task": names, "metadata": {"version": 1},
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }))  # fmt: skip
    return name


class _Texts:
    """A collection's texts, by file."""

    def __init__(self, collection: Collection, seed: int) -> None:
        self.collection, self.random = collection, Random(seed)
        self.queries = list(collection.queries)
        self.documents = {id: text[:_LONGEST] for id, text in collection.documents.items()}
        by_file: dict[str, list[str]] = defaultdict(list)
        for id in self.documents:
            by_file[id.split("#")[0]].append(id)
        largest = Counter({file: len(ids) for file, ids in by_file.items()}).most_common(
            _MOST_FILES
        )
        self.files = {file: by_file[file] for file, count in largest if count >= _SMALLEST_FILE}
        if len(self.files) < 2:
            raise InputError(
                f"fewer than two files of {collection.name} have {_SMALLEST_FILE} texts under "
                "headings: give more, or longer documents"
            )

    @cached_property
    def near(self) -> dict[str, list[str]]:
        """For each query its own text, and those that BM25 takes for it."""
        rows, _ = bm25_hits(
            list(self.collection.queries.values()), list(self.documents.values()), CANDIDATES
        )
        ids = list(self.documents)
        return {
            query: list(dict.fromkeys([query, *(ids[row] for row in found)]))[:CANDIDATES]
            for query, found in zip(self.queries, rows, strict=True)
        }

    def labelled(self) -> list[tuple[str, str]]:
        """(text, file) of the files that are classes."""
        found = [(self.documents[id], file) for file, ids in self.files.items() for id in ids]
        self.random.shuffle(found)
        return found[:_MOST]

    def pairs(self) -> list[tuple[str, str, bool]]:
        """(heading, text, whether the one stands above the other), the wrong ones alike."""
        found = []
        for query in self.random.sample(self.queries, min(_MOST // 2, len(self.queries))):
            wrong = self.near[query][1:]
            if wrong:
                title = self.collection.queries[query]
                found.append((title, self.documents[query], True))
                found.append((title, self.documents[self.random.choice(wrong)], False))
        return found

    def graded(self) -> list[tuple[str, str, float]]:
        """(first half of a text, another half, 2 of the same text, 1 of the same file, else 0)."""
        halves = {id: _halves(text) for id, text in self.documents.items()}
        found = []
        files = list(self.files)
        for grade in (0, 1, 2):
            for _ in range(_MOST // 3):
                file, other = self.random.sample(files, 2)
                one, two = self.random.sample(self.files[file], 2)
                two = self.random.choice(self.files[other]) if grade == 0 else two
                found.append((halves[one][0], halves[one if grade == 2 else two][1], float(grade)))
        return found

    def choice(self, id: str, ids: Sequence[str]) -> dict[str, Any]:
        """A question with four options of one file."""
        title = self.collection.queries[id]
        titles = {self.collection.queries[other] for other in ids
                  if other in self.collection.queries} - {title}  # fmt: skip
        wrong = self.random.sample(sorted(titles), min(3, len(titles)))
        options = [*wrong, *[""] * (3 - len(wrong)), title]
        self.random.shuffle(options)
        text = " ".join(self.documents[id].split())[:_SHOT_CHARACTERS]
        return {"question": text, "choices": options, "answer": options.index(title)}


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def task_metadata(name: str, kind: str, main_score: str) -> TaskMetadata:
    """Of a task that is published nowhere."""
    return TaskMetadata(
        name=name, type=kind, main_score=main_score, reference=None,
        description="Made of one's own documents.", dataset={"path": "own/none", "revision": "1"},
        category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"],
        date=("2024-01-01", "2024-01-02"), domains=[], task_subtypes=[], license="not specified",
        annotations_creators="derived", dialect=[], sample_creation="created", bibtex_citation="",
    )  # fmt: skip


class _Own:
    """What all of them share: their data come from texts that are at hand."""

    dataset: Any
    data_loaded: bool

    def __init__(self, texts: _Texts, **more: Any) -> None:
        super().__init__(**more)
        self._texts = texts

    def load_data(self, **_: Any) -> None:
        self.dataset = self._rows()
        self.data_loaded = True

    def _rows(self) -> Any:
        """The task's data, as mteb wants them."""
        raise NotImplementedError


class _Retrieval(_Own, AbsTaskRetrieval):
    """A heading must find the text below it."""

    metadata = task_metadata("OwnRetrieval", "Retrieval", "ndcg_at_10")
    group = "own Retrieval"

    def _rows(self) -> Any:
        return {"default": {"test": self._split()}}

    def _split(self, top_ranked: dict[str, list[str]] | None = None) -> RetrievalSplitData:
        texts = self._texts
        queries = [{"id": id, "text": texts.collection.queries[id]} for id in texts.queries]
        corpus = [{"id": id, "text": text, "title": ""} for id, text in texts.documents.items()]
        return RetrievalSplitData(
            queries=Dataset.from_list(queries),
            corpus=Dataset.from_list(corpus),
            relevant_docs=texts.collection.relevant,
            top_ranked=top_ranked,
        )


class _Reranking(_Retrieval):
    """A heading must put the text below it before those that BM25 takes for it."""

    metadata = task_metadata("OwnReranking", "Reranking", "map_at_1000")
    group = "own Reranking"

    def _rows(self) -> Any:
        return {"default": {"test": self._split(self._texts.near)}}


class _STS(_Own, AbsTaskSTS):
    """Halves of one text are more alike than texts of one file, and these than others."""

    metadata = task_metadata("OwnSTS", "STS", "cosine_spearman")
    group = "own STS"
    min_score, max_score = 0, 2

    def _rows(self) -> Any:
        one, two, grades = zip(*self._texts.graded(), strict=True)
        rows = {"sentence1": list(one), "sentence2": list(two), "score": list(grades)}
        return DatasetDict(test=Dataset.from_dict(rows))


class _Pairs(_Own, AbsTaskPairClassification):
    """Whether a heading stands above a text, where the wrong texts have its words too."""

    metadata = task_metadata("OwnPairs", "PairClassification", "max_ap")
    group = "own PairClassification"

    def _rows(self) -> Any:
        one, two, own = zip(*self._texts.pairs(), strict=True)
        rows = {"sentence1": list(one), "sentence2": list(two), "labels": list(map(int, own))}
        return DatasetDict(test=Dataset.from_dict(rows))


class _Classification(_Own, AbsTaskClassification):
    """The file that a text is of, learnt from others of its texts."""

    metadata = task_metadata("OwnClassification", "Classification", "accuracy")
    group = "own Classification"
    n_experiments = 5
    samples_per_label = 4

    def _rows(self) -> Any:
        labels = {file: number for number, file in enumerate(self._texts.files)}
        taken: Counter[str] = Counter()
        train: list[dict[str, Any]] = []
        test: list[dict[str, Any]] = []
        for text, file in self._texts.labelled():
            taken[file] += 1
            rows = train if taken[file] <= self.samples_per_label else test
            rows.append({"text": text, "label": labels[file]})
        return DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test))


class _Clustering(_Own, AbsTaskClustering):
    """Texts by the file they are of."""

    metadata = task_metadata("OwnClustering", "Clustering", "v_measure")
    group = "own Clustering"
    max_fraction_of_documents_to_embed = None

    def _rows(self) -> Any:
        found = self._texts.labelled()
        rows = {"sentences": [text for text, _ in found], "labels": [file for _, file in found]}
        return DatasetDict(test=Dataset.from_dict(rows))
