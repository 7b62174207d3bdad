"""Searching some documents alone, by their metadata."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGem
from typer.testing import CliRunner

from gem_rag import Document, Index, InputError
from gem_rag.cli.app import app
from gem_rag.rag.conditions import Where, parse_conditions, satisfies

BOOKS: dict[str, dict[str, Any]] = {
    "old": {"year": 1998, "author": "Ada", "draft": False},
    "new": {"year": 2024, "author": "Bob", "draft": True, "price": 9.5},
    "bare": {},
}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = Index.open(tmp_path / "index", FakeGem())  # type: ignore[arg-type]
    index.sync([Document(name, f"a book {name}", metadata=m) for name, m in BOOKS.items()])
    return index


def found(index: Index, where: Where) -> set[str]:
    return {hit.chunk.source for hit in index.search("a book", 9, where=where)}


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ({}, {"old", "new", "bare"}),
        ({"author": "Ada"}, {"old"}),
        ({"author": ["Ada", "Bob"]}, {"old", "new"}),
        ({"author": "Ada", "year": 2024}, set()),
        ({"year": {"gte": 1998, "lt": 2024}}, {"old"}),
        ({"year": {"gt": 1998}}, {"new"}),
        ({"year": {"ne": 2024}}, {"old"}),
        ({"draft": True}, {"new"}),
        ({"price": {"lte": 9.5}}, {"new"}),
        ({"author": {"gt": 5}}, set()),  # text is not compared with a number
        ({"author": {"ne": 5}}, {"old", "new"}),
        ({"nothing": {"ne": 1}}, set()),  # there is no such field
    ],
)
def test_conditions(index: Index, where: dict[str, Any], wanted: set[str]) -> None:
    assert found(index, where) == wanted


def test_a_function_decides_by_itself(index: Index) -> None:
    def is_recent(metadata: Mapping[str, Any]) -> bool:
        return metadata.get("year", 0) > 2000 or not metadata

    assert found(index, is_recent) == {"new", "bare"}
    assert [hit.chunk.source for hit in index.search("a book", 1, where=is_recent)] != ["old"]
    with pytest.raises(InputError, match="where is 3: give a mapping"):
        index.search("a book", where=3)  # type: ignore[arg-type]


def test_documents_are_selected_without_a_search(index: Index) -> None:
    assert index.select({}) == ["bare", "new", "old"]
    assert index.select({"author": "Ada"}) == ["old"]
    assert index.select(lambda metadata: "price" in metadata) == ["new"]
    with pytest.raises(InputError, match="an operator of 'year'"):
        index.select({"year": {"above": 3}})


def test_hits_have_the_metadata(index: Index) -> None:
    [hit] = index.search("book", where={"author": "Ada"})
    assert hit.metadata == BOOKS["old"]


def test_changed_metadata_are_taken_up_without_embedding(index: Index) -> None:
    report = index.sync([Document("old", "a book old", metadata={"year": 2000})])
    assert (report.unchanged, report.embedded) == (["old"], 0)
    assert found(index, {"year": 2000}) == {"old"}
    assert found(index, {"author": "Ada"}) == set()


def test_files_have_a_type_and_a_time(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("a.md", "b.txt"):
        (docs / name).write_text(f"# A book {name}")
    os.utime(docs / "a.md", (0, 1_700_000_000))
    index = Index.open(tmp_path / "index", FakeGem())  # type: ignore[arg-type]
    index.sync(docs)
    assert found(index, {"type": "txt"}) == {"docs/b.txt"}
    assert found(index, {"modified": {"lt": "2023-11-15"}}) == {"docs/a.md"}
    assert index.search("book", where={"type": "md"})[0].metadata == {
        "type": "md", "modified": "2023-11-14T22:13:20Z",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"year": {"above": 3}}, "an operator of 'year' must be one of ne, gt, gte, lt, lte"),
        ({"year": {}}, "'year' has no condition"),
        ({"year": None}, "'year' is compared with text, a number or a truth value, not None"),
        ({"year": [1, [2]]}, "'year' is compared with"),
    ],
)
def test_what_is_no_condition_is_refused(index: Index, where: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        index.search("book", where=where)


def test_metadata_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(InputError, match="the metadata of 'a' have tags="):
        Document("a", "text", metadata={"tags": ["x"]})  # type: ignore[dict-item]


def test_conditions_as_text() -> None:
    assert parse_conditions(["year>=1998", "year < 2024", "author=Ada", "author=Bob", "n!=1"]) == {
        "year": {"gte": 1998, "lt": 2024}, "author": ["Ada", "Bob"], "n": {"ne": 1},
    }  # fmt: skip
    assert parse_conditions(["draft=true", "title=a = b", "v=1.10"]) == {
        "draft": [True], "title": ["a = b"], "v": [1.1],
    }  # fmt: skip
    with pytest.raises(InputError, match="'year' is no condition"):
        parse_conditions(["year"])
    assert satisfies({"draft": True}, parse_conditions(["draft=true"]))


def test_the_command(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["gem_rag.cli.app"], "open_index", lambda *_: index)
    shown = CliRunner().invoke(app, ["search", "book", "--where", "year>2000"]).stdout
    assert "new" in shown
    assert "old" not in shown
