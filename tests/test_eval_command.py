"""`gem-rag eval` on real files: scores, the report, comparisons, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gem_rag import cli
from gem_rag.evaluation.html_report import write_report
from gem_rag.evaluation.scores import Missing, Record, Score

TOPICS = ("Pumps", "Lamps", "Doors", "Bridges", "Clocks", "Ovens")


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in TOPICS:
        text = (
            f"# {name}\n\nThe {name.lower()} of this house were made with care in the year 1900.\n"
        )
        (folder / f"{name.lower()}.md").write_text(text)
    return folder


@pytest.fixture
def run(capsys: Any) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["eval", *arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


def test_retrieval_and_answers_come_into_one_report(docs: Path, run: Any) -> None:
    code, out, err = run("retrieval", "--documents", "docs", "--out", "found")
    assert (code, "6 titles ask 6 texts" in err) == (0, True)
    assert "mean-pooling" in out
    scores = Record.load(Path("found/scores.json")).scores
    found = {(s.system, s.metric): s for s in scores}
    assert {s.system for s in scores} == {"gem-tiny", "bm25", "mean-pooling"}
    assert found["bm25", "mrr_at_10"].value == 1.0  # every title stands in its own text alone
    assert found["gem-tiny", "recall_at_10"].value == 1.0  # of six all are among ten
    assert len(found["gem-tiny", "ndcg_at_10"].items) == 6

    # The set that was built is in the BEIR layout, and gives the same.
    code, out, _ = run("retrieval", "--data", "found/collection", "--out", "again", "--json")
    again = {(s["system"], s["metric"]): s["value"] for s in json.loads(out)["scores"]}
    assert again == {key: score.value for key, score in found.items()}

    rows = [
        {"question": "When were the lamps made?", "answer": "1900", "source": "docs/lamps.md"},
        {"question": "What was made with care?", "answer": "pumps of this house"},
        {"question": "Who painted the walls?"},
    ]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit):
        cli.main(["index", "docs"])
    assert run("rag", "--data", "asked.jsonl", "--out", "found")[0] == 0
    scores = Record.load(Path("found/scores.json")).scores
    assert {s.kind for s in scores} == {"retrieval", "answers"}
    counts = {s.metric: len(s.items) for s in scores if s.kind == "answers"}
    assert (counts["hit"], counts["refusal"], counts["seconds"]) == (2, 1, 3)
    answers = list(map(json.loads, Path("found/answers-asked.jsonl").read_text().splitlines()))
    assert [a["reference"] for a in answers] == ["1900", "pumps of this house", ""]
    assert all(a["verbatim"] == 1.0 for a in answers if "verbatim" in a)  # gem-tiny quotes

    page = Path("found/report.html").read_text()
    assert "Retrieval" in page
    assert "1900" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing from elsewhere
    drawn = {file.name for file in Path("found").glob("*.png")}
    assert drawn == {"retrieval.png", "answers.png", "latency.png"}


def test_two_evaluations_are_compared(docs: Path, run: Any) -> None:
    for name, own in (("a", (0.0, 0.2, 0.1, 0.0) * 10), ("b", (0.5, 0.7, 0.6, 0.5) * 10)):
        mean = sum(own) / len(own)
        write_report(Record(name, (Score("retrieval", "docs", "ndcg_at_10", name, mean, own),)),
                     Path(name))  # fmt: skip
    code, out, _ = run("compare", "a", "b")
    assert code == 0
    assert re.search(r"0\.075.*0\.575.*\+0\.500", out)
    found = json.loads(run("compare", "a", "b", "--json")[1])
    assert found[0]["better"] == "second"


def test_a_report_says_what_is_missing_and_escapes_names(tmp_path: Path) -> None:
    own = "<b>own</b>"
    scores = (
        Score("generation", "mmlu", "acc", own, 0.25, error=0.01),
        Score("generation", "mmlu", "acc", "base", 0.3, error=0.01),
        Score("retrieval", "docs", "ndcg_at_10", own, 0.5),
        Score("retrieval", "docs", "ndcg_at_10", "base", 0.1),
    )
    missing = (Missing("embeddings", "SciFact", "its data is not at hand", "Retrieval"),)
    record = Record(own, scores, missing)
    page = write_report(record, tmp_path).read_text()
    assert "missing: its data is not at hand" in page
    assert "<b>own" not in page
    assert "± 0.010" in page
    assert (tmp_path / "retrieval-and-generation.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["retrieval"], "give judged queries (--data) or documents (--documents), one of both"),
        (["retrieval", "--data", "docs"], "docs lacks corpus.jsonl"),
        (["retrieval", "--documents", "docs", "-b", "bm52"],
         "there is no baseline 'bm52' (did you mean 'bm25'?)"),
        (["rag", "--data", "no.jsonl"], "there is no file no.jsonl"),
        (["rag", "--data", "bad.jsonl"], "bad.jsonl, line 2: this is not"),
        (["rag", "--data", "source.jsonl"], "there is no index"),
        (["compare", "docs", "docs"], "is no evaluation"),
        (["report", "docs"], "is no evaluation"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_sentence(
    docs: Path, run: Any, arguments: list[str], problem: str
) -> None:
    Path("bad.jsonl").write_text('{"question": "Why?"}\n{"question": ""}')
    Path("source.jsonl").write_text('{"question": "Why?", "answer": "x", "source": "docs/x.md"}')
    code, _, err = run(*arguments)
    assert code == 2
    assert problem in err
    assert err.count("\n") <= 2
