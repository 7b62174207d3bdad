"""Tasks made of one's own documents, run by mteb and by lm_eval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import mteb
import pytest

from gem_rag import cli
from gem_rag.errors import InputError
from gem_rag.evaluation.collection import Collection, from_documents
from gem_rag.evaluation.document_tasks import document_tasks, write_choices
from gem_rag.evaluation.html_report import summary
from gem_rag.evaluation.mteb_tasks import PAPER, run_mteb
from gem_rag.evaluation.scores import Record
from gem_rag.model import Gem

WORDS = {
    "sea": "ship wave salt fish harbour anchor sail tide storm coral island net",
    "sky": "cloud bird wind star moon comet wing rain thunder sun feather kite",
    "earth": "stone root seed worm tree field mud hill cave plough harvest clay",
}


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collection:
    """Three files of twelve headings; below each a text with its word and others of its file."""
    monkeypatch.chdir(tmp_path)
    random = Random(0)
    for name, words in WORDS.items():
        parts = [
            f"# The {word} of {name}\n\nA {word} is seen with "
            + ", ".join(random.sample(words.split(), 8)) + ".\n"
            for word in words.split()
        ]  # fmt: skip
        (tmp_path / f"{name}.md").write_text("\n".join(parts))
    return from_documents([tmp_path])


def test_every_kind_of_task_runs_in_mteb(collection: Collection, gem: Gem, tmp_path: Path) -> None:
    found = run_mteb(gem, document_tasks(collection), tmp_path / "out")
    assert {score.group for score in found.scores} == {
        "own Retrieval", "own Reranking", "own STS", "own PairClassification",
        "own Classification", "own Clustering",
    }  # fmt: skip
    assert found.missing == ()


class Lexical:
    """Counts of words as vectors: right wherever words decide."""

    name = fingerprint = "lexical"
    truncation, max_length = "truncate", 1000

    def __init__(self) -> None:
        self.words = " ".join(WORDS.values()).split()
        self.dim = len(self.words)

    def embed_queries(self, texts):  # type: ignore[no-untyped-def]
        import numpy as np

        counts = np.array([[text.lower().count(word) for word in self.words] for text in texts])
        vectors = counts + 1e-3
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    embed_documents = embed_queries


def test_tasks_reward_what_tells_texts_apart(collection: Collection, tmp_path: Path) -> None:
    found = run_mteb(Lexical(), document_tasks(collection), tmp_path)  # type: ignore[arg-type]
    scores = {score.task: score.value for score in found.scores}
    assert scores["OwnClassification"] > 0.9
    assert scores["OwnClustering"] > 0.8
    assert scores["OwnRetrieval"] > 0.5
    assert scores["OwnPairs"] > 0.6
    assert scores["OwnSTS"] > 0.3
    assert scores["OwnReranking"] >= scores["OwnRetrieval"] - 0.3


def test_the_same_documents_make_the_same_tasks(collection: Collection) -> None:
    one, other = document_tasks(collection), document_tasks(collection)
    for first, second in zip(one, other, strict=True):
        for task in (first, second):
            task.load_data()
        assert str(first.dataset) == str(second.dataset)
        if isinstance(first.dataset, dict) and "test" in first.dataset:
            assert first.dataset["test"][:] == second.dataset["test"][:]
    assert isinstance(one[0], mteb.AbsTask)


def test_choices_are_of_one_file_and_one_is_right(collection: Collection, tmp_path: Path) -> None:
    name = write_choices(collection, tmp_path / "tasks")
    group = json.loads((tmp_path / "tasks" / f"{name}.yaml").read_text())
    assert len(group["task"]) == 3
    for task in group["task"]:
        config = json.loads((tmp_path / "tasks" / f"{task}.yaml").read_text())
        files = config["dataset_kwargs"]["data_files"]
        rows = {split: [json.loads(line) for line in Path(file).read_text().splitlines()]
                for split, file in files.items()}  # fmt: skip
        assert (len(rows["dev"]), len(rows["test"])) == (5, 7)
        for row in (*rows["dev"], *rows["test"]):
            assert len(set(row["choices"])) == 4
            assert len({choice.split()[-1] for choice in row["choices"]}) == 1
            word = row["question"].split()[1]
            assert row["choices"][row["answer"]].split()[1] == word


def test_too_few_texts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.md").write_text(
        "# One\n\nThis is a text, and it has more than enough letters to be one of them.\n"
    )
    with pytest.raises(InputError, match="fewer than two files"):
        document_tasks(from_documents([tmp_path]))


def test_the_papers_table_is_filled_by_one_command_and_says_what_is_missing(
    collection: Collection,
    gem: Gem,
    plain_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = plain_folder("llama")
    options = ("--model", gem.name, "--base", base, "--documents", ".", "--cache", "data")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "paper", *map(str, options)])
    out = capsys.readouterr().out
    assert not stopped.value.code
    found = Record.load(Path("gem-eval/scores.json"))
    means = summary(found)
    assert means is not None
    rows = {row["system"]: dict(zip(means["groups"], row["cells"], strict=True))
            for row in means["rows"]}  # fmt: skip
    assert set(rows) == {Path(gem.name).name, base.name}
    for cells in rows.values():
        for kind in ("Retrieval", "Reranking", "STS", "Clustering"):
            assert cells[kind] == "missing"
            assert -1 <= float(cells[f"own {kind}"]) <= 1  # STS is a correlation
        assert (cells["mmlu"], 0 <= float(cells["own_choices"]) <= 1) == ("missing", True)
    assert {m.task for m in found.missing} == {*PAPER, "mmlu"}
    assert "missing: ArguAna, ClimateFEVER" in out
    assert "data/hub/datasets--mteb--arguana" in out
    page = Path("gem-eval/report.html").read_text()
    assert page.count("missing: its data set") == 17
