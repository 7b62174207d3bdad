"""What is wrong with an index is found, and repaired where its texts allow."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGem
from typer.testing import CliRunner

from gem_rag import Document, GemError, Index
from gem_rag.cli.app import app
from gem_rag.rag import writer
from gem_rag.rag.database import Database
from gem_rag.rag.stores import faiss_store

TEXTS = [f"word{n} pump{n % 7} lamp{n % 5}" for n in range(60)]
STORES = ["faiss", "chroma"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few vectors are many."""
    monkeypatch.setattr(faiss_store, "EXACT", 40)
    monkeypatch.setattr(writer, "_FILE", 30)
    monkeypatch.setattr(writer, "_BATCH", 10)


def open_index(folder: Path, gem: Any = None, store: Any = None) -> Index:
    return Index.open(folder / "index", gem or FakeGem(), store)


def make_index(folder: Path, store: str = "faiss") -> list[tuple[str, float]]:
    """An index of two files of vectors, and what it finds."""
    index = open_index(folder, store=store)
    index.sync([Document(str(n), text) for n, text in enumerate(TEXTS)])
    return search(index)


def search(index: Index) -> list[tuple[str, float]]:
    return [(h.chunk.source, round(h.score, 4)) for h in index.search("word3 pump3 lamp2", 8)]


def damage(folder: Path, pattern: str) -> str:
    """Change the last byte of a file."""
    file = min((folder / "index").glob(pattern))
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return file.name


def forget_words(folder: Path) -> None:
    with Database(folder / "index").writing() as connection:
        connection.execute("DELETE FROM words WHERE rowid < 20")


def miscount(folder: Path) -> None:
    manifest = open_index(folder).manifest
    with Database(folder / "index").writing() as connection:
        dataclasses.replace(manifest, chunks=59).write(connection)


def lose_vectors(folder: Path) -> None:
    min((folder / "index").glob("vectors-*.npy")).unlink()


@pytest.mark.parametrize("store", STORES)
def test_a_whole_index_has_no_faults(tmp_path: Path, store: str) -> None:
    make_index(tmp_path, store)
    assert open_index(tmp_path).examine() == open_index(tmp_path).examine(repair=True) == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: damage(folder, "vectors-*.npy"), "is damaged"),
        (lose_vectors, "is missing"),
        (lambda folder: damage(folder, "nearest-*.faiss"), "is damaged"),
        (forget_words, "the index of words does not match the chunks"),
        (miscount, "the manifest says 59 chunks, and there are 60"),
        (lambda folder: (folder / "index" / "vectors-old.npy").write_bytes(b"x"), "left over"),
    ],
)
def test_faults_are_found_and_repaired(
    tmp_path: Path, harm: Callable[[Path], Any], said: str
) -> None:
    wanted = make_index(tmp_path)
    harm(tmp_path)
    [finding] = open_index(tmp_path).examine()
    assert said in finding.what
    assert not finding.is_repaired
    gem = FakeGem()
    assert [f.is_repaired for f in open_index(tmp_path, gem).examine(repair=True)] == [True]
    assert open_index(tmp_path).examine() == []
    assert search(open_index(tmp_path)) == wanted
    assert len(gem.embedded) in (0, 30)  # only what was lost


def test_a_chroma_database_is_filled_again(tmp_path: Path) -> None:
    wanted = make_index(tmp_path, "chroma")
    (tmp_path / "index" / "chroma" / "chroma.sqlite3").write_bytes(b"")
    gem = FakeGem()
    [finding] = open_index(tmp_path, gem).examine(repair=True)
    assert "Chroma database" in finding.what
    assert finding.is_repaired
    assert search(open_index(tmp_path)) == wanted
    assert gem.embedded == []


def test_a_damaged_database_is_not_repaired(tmp_path: Path) -> None:
    make_index(tmp_path)
    damage(tmp_path, "index.db")
    with pytest.raises(GemError, match="index.db is damaged"):
        open_index(tmp_path).examine(repair=True)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_index(tmp_path)
    monkeypatch.setattr(
        sys.modules["gem_rag.cli.index_command"], "open_index", lambda *_: open_index(tmp_path)
    )
    run = CliRunner().invoke
    assert "the index is whole" in run(app, ["doctor"]).stdout
    name = damage(tmp_path, "vectors-*.npy")
    found = run(app, ["doctor"])
    assert f"{name} is damaged" in found.stdout
    assert isinstance(found.exception, GemError)
    assert f"{name} is damaged: repaired" in run(app, ["doctor", "--repair"]).stdout
    assert run(app, ["doctor", "--json"]).stdout.strip() == "[]"


@pytest.mark.parametrize("store", STORES)
def test_an_interrupted_reembed_goes_on_where_it_ended(tmp_path: Path, store: str) -> None:
    class Interrupted(FakeGem):
        def embed_documents(self, texts: Any, **_: Any) -> Any:
            if len(self.embedded) >= 30:
                raise KeyboardInterrupt
            return super().embed_documents(texts)

    wanted = make_index(tmp_path, store)
    with pytest.raises(KeyboardInterrupt):
        Index.reembed(tmp_path / "index", Interrupted("new", 32))
    assert search(open_index(tmp_path)) == wanted  # the old one, until the new one is whole
    gem = FakeGem("new", 32)
    index = Index.reembed(tmp_path / "index", gem)
    assert len(gem.embedded) == 30
    assert len(index) == 60
    assert [source for source, _ in search(index)][:1] == ["3"]


def test_who_searched_before_sees_words_that_were_written_again(tmp_path: Path) -> None:
    make_index(tmp_path)
    opened = open_index(tmp_path)
    wanted = [hit.chunk.source for hit in opened.search("word7", ranking="words")]
    assert wanted == ["7"]
    Index.reembed(tmp_path / "index", FakeGem())
    assert [hit.chunk.source for hit in opened.search("word7", ranking="words")] == wanted
    assert opened.examine() == []
