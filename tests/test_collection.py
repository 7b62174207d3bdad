"""Judged queries from files, and from a team's own documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gem_rag.errors import InputError
from gem_rag.evaluation.collection import from_documents, is_held_out, read_beir

CORPUS = [
    {"_id": "d1", "title": "Pump", "text": "It moves water."},
    {"_id": "d2", "text": "Light."},
]
QUERIES = [{"_id": "q1", "text": "What moves?"}, {"_id": "q2", "text": "Unjudged?"}]


def beir(
    folder: Path, judgements: str = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n"
) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", CORPUS), ("queries", QUERIES)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "qrels" / "test.tsv").write_text(judgements)
    return folder


def test_a_beir_folder_is_read(tmp_path: Path) -> None:
    found = read_beir(beir(tmp_path / "mine"))
    assert found.name == "mine"
    assert found.documents == {"d1": "Pump\nIt moves water.", "d2": "Light."}
    assert found.queries == {"q1": "What moves?"}
    assert found.relevant == {"q1": {"d1": 2}}


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    found = read_beir(beir(tmp_path / "mine"))
    found.save(tmp_path / "again" / "mine")
    assert read_beir(tmp_path / "again" / "mine") == found


@pytest.mark.parametrize(
    ("judgements", "problem"),
    [
        ("q1\td7\t1\nq1\td8\t1\n", r"test.tsv names 2 ids that corpus.jsonl lacks: 'd7', 'd8'"),
        ("q7\td1\t1\n", r"test.tsv names 1 ids that queries.jsonl lacks: 'q7'"),
        ("q1\td1\t1\nq1\td2\n", r"line 2: this is not query-id, corpus-id and score"),
        ("q1\td1\t1\nq1\td2\tgood\n", r"line 2: this is not query-id"),
        ("q1\td1\t0\n", "judges no document relevant"),
    ],
)
def test_bad_judgements_are_named(tmp_path: Path, judgements: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_beir(beir(tmp_path / "mine", judgements))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"_id": "d1", "text": "again"}', r"corpus.jsonl, line 3: the id 'd1' stands there twice"),
        ('{"text": "no id"}', "line 3: this is not"),
        ("{", "line 3: this is not"),
        ('{"_id": "d3", "text": 3}', "line 3: this is not"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, line: str, problem: str) -> None:
    folder = beir(tmp_path / "mine")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write("\n" + line)
    with pytest.raises(InputError, match=problem):
        read_beir(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks corpus.jsonl, queries.jsonl, qrels/test.tsv"):
        read_beir(tmp_path)


def test_headings_find_what_stands_below_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = "This says something about it in enough words to be a body."
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(
        f"# Pumps\n\n{body} A\n\n## Valves\n\n{body} B\n\n## Empty\n"
    )
    (tmp_path / "docs" / "b.txt").write_text(f"Lamps\n\n{body} C")
    (tmp_path / "docs" / "c.py").write_text(f'def oil(can):\n    """{body} D"""\n')
    found = from_documents([tmp_path / "docs"])
    asked = {text: found.documents[id] for id, text in found.queries.items()}
    assert {title: text[-1] for title, text in asked.items()} == {
        "Pumps": "A", "Valves": "B", "Lamps": "C", "c.oil(can)": "D",
    }  # fmt: skip
    assert all(found.relevant[id] == {id: 1} for id in found.queries)
    assert not any(title in text for title, text in asked.items())


def test_only_held_out_documents_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for n in range(40):
        (tmp_path / f"{n}.md").write_text(f"# Title {n}\n\n{'words about it ' * 5}{n}")
    found = from_documents([tmp_path], held_out=0.25)
    assert len(found.documents) == 40
    assert {id.split("#")[0] for id in found.queries} == {
        f"{n}.md" for n in range(40) if is_held_out(f"{n}.md", 0.25)
    }
    assert 2 < len(found.queries) < 20
    assert len(from_documents([tmp_path], most=7).queries) == 7


def test_documents_without_headings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Only a line.")
    with pytest.raises(InputError, match="has no titles or headings"):
        from_documents([tmp_path])
