"""What an index keeps on disk: appended to, tidied, gone on with, and never wrong."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from fakes import FakeGem

from gem_rag import Document, GemError, Index
from gem_rag.rag import writer
from gem_rag.rag.stores import faiss_store

WORDS = [f"word{n}" for n in range(40)]


def document(number: int) -> Document:
    chosen = random.Random(number).choices(WORDS, k=12)
    return Document(f"d{number:04}", f"{' '.join(chosen)} number{number}")


def open_index(folder: Path, gem: Any = None, store: Any = None) -> Index:
    return Index.open(folder / "index", gem or FakeGem(), store)


def files(folder: Path, pattern: str = "vectors-*.npy") -> set[str]:
    return {path.name for path in (folder / "index").glob(pattern)}


def found(index: Index, question: str, k: int = 5, ranking: Any = "vectors") -> list[str]:
    return [hit.chunk.source for hit in index.search(question, k, ranking=ranking)]


def exact(documents: Sequence[Document], question: str, k: int) -> list[str]:
    """What a search of all vectors finds."""
    gem = FakeGem()
    scores = gem.embed_queries([one.text for one in documents]) @ gem.embed_queries([question])[0]
    return [documents[at].source for at in np.argsort(-scores, kind="stable")[:k]]


# -- appending -----------------------------------------------------------------------------------


def test_a_sync_adds_a_file_and_leaves_the_others(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.sync([document(1)])
    before = files(tmp_path)
    index.sync([document(2)])
    assert before < files(tmp_path)
    assert len(files(tmp_path)) == 2


def test_a_chunk_that_moves_in_its_document_keeps_its_vector(tmp_path: Path) -> None:
    text = "# One\n\nA pump moves water.\n\n# Two\n\nA lamp gives light.\n"
    gem = FakeGem()
    index = open_index(tmp_path, gem)
    index.sync([Document("a", text, kind="markdown")])
    before, gem.embedded = files(tmp_path), []
    changed = "# Zero\n\nNew words here.\n\n" + text
    assert index.sync([Document("a", changed, kind="markdown")]).changed == ["a"]
    assert gem.embedded == ["Zero\n# Zero\n\nNew words here."]
    assert before < files(tmp_path)
    hit = index.search("lamp light", 1)[0]
    assert changed[hit.chunk.start : hit.chunk.stop] == hit.chunk.text
    assert "A lamp gives light." in hit.chunk.text


def test_small_files_are_merged_and_removed_rows_dropped(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    for number in range(30):
        index.sync([document(number)])
    assert len(files(tmp_path)) <= 9
    index.remove([f"d{number:04}" for number in range(28)])
    rows = sum(len(np.load(tmp_path / "index" / name)) for name in files(tmp_path))
    assert rows <= 4
    assert sorted(found(index, "word1", 9)) == ["d0028", "d0029"]


def test_of_two_documents_of_one_source_the_later_counts(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    report = index.sync([Document("a", "A pump."), Document("a", "A lamp.")])
    assert (report.added, report.changed, report.chunks) == (["a"], [], 1)
    assert index.document("a").text == "A lamp."
    assert [hit.chunk.text for hit in index.search("pump", 5)] == ["A lamp."]


def test_a_text_may_hold_any_character(tmp_path: Path) -> None:
    odd = Document("a", "before\0after \U0001f600 e\u0301 end", title="t\0t")
    index = open_index(tmp_path)
    index.sync([odd])
    assert index.document("a") == odd
    assert index.search("after", 1)[0].chunk.text == odd.text
    assert found(index, "after", ranking="words") == ["a"]


def test_an_index_that_was_put_in_the_place_of_another_is_seen(tmp_path: Path) -> None:
    open_index(tmp_path / "b").sync([document(2)])
    index = open_index(tmp_path / "a")
    index.sync([document(1)])
    assert found(index, "word1") == ["d0001"]
    shutil.rmtree(tmp_path / "a" / "index")
    shutil.copytree(tmp_path / "b" / "index", tmp_path / "a" / "index")
    assert found(index, "word1") == ["d0002"]


def test_a_copy_made_while_an_index_is_open_is_whole(tmp_path: Path) -> None:
    index = open_index(tmp_path / "a")
    index.sync([document(number) for number in range(50)])
    index.search("word1")
    shutil.copytree(tmp_path / "a" / "index", tmp_path / "b" / "index")
    assert len(open_index(tmp_path / "b")) == 50


def test_an_index_is_read_where_nothing_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_index(tmp_path).sync([document(1)])
    before = sorted(os.listdir(tmp_path / "index"))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    assert found(open_index(tmp_path), "word1") == ["d0001"]
    assert sorted(os.listdir(tmp_path / "index")) == before


# -- interrupted ---------------------------------------------------------------------------------


class Interrupted(FakeGem):
    """A model during whose n-th batch somebody presses Ctrl-C."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def embed_documents(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().embed_documents(texts, **options)


@pytest.mark.parametrize("store", ["faiss", "chroma"])
def test_a_sync_goes_on_where_an_interrupted_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setattr(writer, "_BATCH", 10)
    documents = [document(number) for number in range(60)]
    index = open_index(tmp_path, store=store)
    index.sync(documents[:5])
    with pytest.raises(KeyboardInterrupt):
        open_index(tmp_path, Interrupted(3), store).sync(documents)
    assert index.sources == [one.source for one in documents[:5]]
    assert set(found(index, "word1", 60)) == {one.source for one in documents[:5]}
    gem = FakeGem()
    report = open_index(tmp_path, gem, store).sync(documents)
    assert report.embedded == len(gem.embedded) == 55 - 30
    assert sorted(found(index, "word1", 60)) == sorted(one.source for one in documents)
    assert len(files(tmp_path)) == len(index.manifest.files)


def test_what_an_interruption_left_damaged_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_BATCH", 10)
    documents = [document(number) for number in range(30)]
    with pytest.raises(KeyboardInterrupt):
        open_index(tmp_path, Interrupted(2)).sync(documents)
    (left,) = (tmp_path / "index").glob("vectors-*.npy")
    left.write_bytes(left.read_bytes()[:-1] + b"?")
    gem = FakeGem()
    index = open_index(tmp_path, gem)
    assert index.sync(documents).embedded == 30
    assert found(index, "word1 word2", 3) == exact(documents, "word1 word2", 3)


# -- many vectors --------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few vectors are many."""
    monkeypatch.setattr(faiss_store, "EXACT", 100)
    monkeypatch.setattr(writer, "_FILE", 128)
    monkeypatch.setattr(writer, "_BATCH", 50)


@pytest.mark.usefixtures("small")
def test_a_graph_finds_what_comparing_all_finds(tmp_path: Path) -> None:
    documents = [document(number) for number in range(400)]
    index = open_index(tmp_path)
    index.sync(documents)
    assert len(files(tmp_path, "nearest-*.faiss")) == 1
    for question in ("word1", "word7 word9", "number13"):
        assert found(index, question, 10) == exact(documents, question, 10)
        hit = index.search(question, 1, ranking="vectors")[0]
        true = FakeGem().embed_queries([question, hit.chunk.text])
        assert hit.score == pytest.approx(float(true[0] @ true[1]), abs=1e-6)


@pytest.mark.usefixtures("small")
def test_what_came_after_the_graph_is_found_and_what_went_is_not(tmp_path: Path) -> None:
    documents = [document(number) for number in range(400)]
    index = open_index(tmp_path)
    index.sync(documents)
    graph = files(tmp_path, "nearest-*.faiss")
    index.remove(["d0013"])
    index.sync([Document("new", "number999 alone")])
    assert files(tmp_path, "nearest-*.faiss") == graph
    assert found(index, "number999", 1) == ["new"]
    assert "d0013" not in found(index, "number13", 400)
    assert len(found(index, "number13", 1000)) == 400
    index.sync([document(number) for number in range(400, 520)])  # too many to compare
    assert not graph & files(tmp_path, "nearest-*.faiss")
    index.remove([f"d{number:04}" for number in range(450) if number != 13])
    assert not files(tmp_path, "nearest-*.faiss")  # few again
    left = [document(number) for number in range(450, 520)]
    assert found(index, "word3 word4", 5) == exact(
        [Document("new", "number999 alone"), *left], "word3 word4", 5
    )


@pytest.mark.usefixtures("small")
def test_very_many_vectors_are_in_lists_of_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_store, "GRAPH", 300)
    documents = [document(number) for number in range(400)]
    index = open_index(tmp_path)
    index.sync(documents)
    (name,) = files(tmp_path, "nearest-*.faiss")
    whole = faiss.read_index(str(tmp_path / "index" / name))
    assert isinstance(faiss.downcast_index(whole.index), faiss.IndexIVFPQ)
    for question in ("word1", "word7 word9"):
        assert found(index, question, 3) == exact(documents, question, 3)


@pytest.mark.usefixtures("small")
def test_flipped_bytes_of_every_file_are_noticed_or_harmless(tmp_path: Path) -> None:
    documents = [document(number) for number in range(200)]
    open_index(tmp_path).sync(documents)
    wanted = found(open_index(tmp_path), "word1 word2", 20, ranking="hybrid")
    chance = random.Random(0)
    noticed = 0
    for file in sorted((tmp_path / "index").glob("[!.]*")):
        whole = file.read_bytes()
        for _ in range(10):
            at = chance.randrange(len(whole))
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            try:
                index = open_index(tmp_path)
                assert found(index, "word1 word2", 20, ranking="hybrid") == wanted
            except GemError:
                noticed += 1
        file.write_bytes(whole)
    assert noticed > 20


@pytest.mark.usefixtures("small")
def test_any_changes_end_where_a_new_index_would(tmp_path: Path) -> None:
    chance = random.Random(1)
    index, there = open_index(tmp_path), dict[str, Document]()
    for _ in range(12):
        new = [document(chance.randrange(600)) for _ in range(chance.randrange(120))]
        index.sync(new)
        there |= {one.source: one for one in new}
        gone = chance.sample(sorted(there), len(there) // 4)
        if gone:
            index.remove(gone)
        there = {source: one for source, one in there.items() if source not in gone}
        assert index.sources == sorted(there)
        documents = [there[source] for source in sorted(there)]
        for question in ("word1 word2", "word30"):
            assert set(found(index, question, 5)) == set(exact(documents, question, 5))


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("The pumps were evaluated.", "evaluating a pump"),
        ("水泵把水送过管道。", "水泵"),
        ("ปั๊มน้ำส่งน้ำ", "น้ำ"),
        ("पानी का पंप", "पानी"),
        ("Die Größe der Straße", "grosse größe"),
        ("un café crème", "cafe"),
        ("call snake_case_name now", "snake_case_name"),
        ("Насос перекачивает воду", "насос"),
    ],
)
def test_words_of_any_script_are_found(tmp_path: Path, text: str, question: str) -> None:
    index = open_index(tmp_path)
    index.sync([Document("a", text), Document("b", "Something else entirely."), document(1)])
    assert found(index, question, ranking="words") == ["a"]


def test_a_question_is_no_query_language(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.sync([Document("a", "A pump AND a lamp."), Document("b", "Other things.")])
    for question in ('"', "pump OR", "NEAR(pump lamp)", "pump*", "col:pump", "-pump", "'pump'"):
        expected = ["a"] if "pump" in question else []
        assert found(index, question, ranking="words") == expected
    for pair in itertools.product("\"'()*:^-+", repeat=2):
        assert found(index, "".join(pair), ranking="words") == []
