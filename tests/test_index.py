"""The index: in step with its files, one commit at a time, never with another model."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeGem
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gem_rag.documents.document import Document
from gem_rag.errors import GemError, InputError
from gem_rag.rag.database import Database
from gem_rag.rag.index import Index

STORES = ["faiss", "chroma"]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "pump.txt").write_text("A pump moves water through pipes.")
    (folder / "lamp.txt").write_text("A lamp gives light at night.")
    return folder


def open_index(tmp_path: Path, gem: Any = None, store: Any = None, **options: Any) -> Index:
    return Index.open(tmp_path / "index", gem or FakeGem(), store, **options)


def found(index: Index, question: str, k: int = 5) -> list[str]:
    return [hit.chunk.source for hit in index.search(question, k)]


@pytest.mark.parametrize("store", STORES)
def test_sync_search_and_reopen(tmp_path: Path, docs: Path, store: str) -> None:
    index = open_index(tmp_path, store=store)
    report = index.sync([docs])
    assert report.added == ["docs/lamp.txt", "docs/pump.txt"]
    assert (report.chunks, report.embedded) == (2, 2)
    for opened in (index, open_index(tmp_path)):
        hits = opened.search("water pump", k=2)
        assert [hit.chunk.source for hit in hits] == ["docs/pump.txt", "docs/lamp.txt"]
        assert hits[0].score > hits[1].score
        want = opened.gem.embed_queries(["water pump", hits[0].chunk.passage])
        assert hits[0].score == pytest.approx(float(want[0] @ want[1]), abs=1e-5)


@pytest.mark.parametrize("store", STORES)
def test_sync_follows_files_and_embeds_only_what_is_new(
    tmp_path: Path, docs: Path, store: str
) -> None:
    gem = FakeGem()
    index = open_index(tmp_path, gem, store)
    index.sync([docs])
    (docs / "lamp.txt").write_text("A lamp needs a battery.")
    (docs / "door.txt").write_text("A door opens a room.")
    (docs / "pump.txt").rename(docs / "moved.txt")
    gem.embedded.clear()
    report = index.sync([docs])
    assert report.added == ["docs/door.txt", "docs/moved.txt"]
    assert report.changed == ["docs/lamp.txt"]
    assert report.removed == ["docs/pump.txt"]
    assert sorted(gem.embedded) == ["A door opens a room.", "A lamp needs a battery."]
    assert found(index, "water pipes", 1) == ["docs/moved.txt"]
    assert "docs/pump.txt" not in found(index, "pump", 9)
    again = index.sync([docs])
    assert (len(again.unchanged), again.embedded, again.added) == (3, 0, [])
    assert index.manifest.generation == 2


def test_files_outside_the_synced_paths_stay(tmp_path: Path, docs: Path) -> None:
    other = tmp_path / "docs-of-others"  # shares a prefix with docs/
    other.mkdir()
    (other / "sea.txt").write_text("The sea is salt water.")
    index = open_index(tmp_path)
    index.sync([docs, other, Document("note", "A note about nothing.")])
    shutil.rmtree(docs)
    docs.mkdir()
    report = index.sync([docs])
    assert report.removed == ["docs/lamp.txt", "docs/pump.txt"]
    assert index.sources == ["docs-of-others/sea.txt", "note"]


def test_missing_folder_removes_nothing(tmp_path: Path, docs: Path) -> None:
    index = open_index(tmp_path)
    index.sync([docs])
    shutil.rmtree(docs)
    with pytest.raises(InputError, match="there is no file or folder"):
        index.sync([docs])
    assert len(open_index(tmp_path)) == 2


def test_file_that_became_unreadable_is_skipped_and_kept(tmp_path: Path, docs: Path) -> None:
    index = open_index(tmp_path)
    index.sync([docs])
    (docs / "pump.txt").write_bytes(b"\xff\xfe broken")
    report = index.sync([docs])
    assert [s.source for s in report.skipped] == ["docs/pump.txt"]
    assert report.removed == []
    assert found(index, "water pump", 1) == ["docs/pump.txt"]


def test_equal_texts_are_found_once(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.sync([Document(name, "The same words.") for name in "abc"] + [Document("d", "Other.")])
    first, second = found(index, "same words", 2)
    assert first in {"a", "b", "c"}  # equal scores: any of them
    assert second == "d"


def test_of_equal_texts_the_nearest_is_kept_in_its_place(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.sync([
        Document("far", "The same words.", title="six words on quite another matter"),
        Document("near", "The same words.", title="same words"),
        Document("between", "The same other words."),
    ])  # fmt: skip
    hits = index.search("the same words .", 3)
    assert [hit.chunk.source for hit in hits] == ["near", "between"]
    assert hits[0].score > hits[1].score


def test_document_gives_back_what_was_indexed(tmp_path: Path) -> None:
    document = Document("a", "Some ünïcödé text\u2028with odd\x85breaks.", "Title")
    index = open_index(tmp_path)
    index.sync([document])
    assert open_index(tmp_path).document("a") == document
    with pytest.raises(InputError, match="no document 'b'"):
        index.document("b")


# -- refusals ----------------------------------------------------------------------------------


def test_empty_index_and_bad_questions(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    with pytest.raises(InputError, match="is empty: add documents"):
        index.search("anything")
    assert not (tmp_path / "index").exists()
    index.sync([Document("a", "Text.")])
    with pytest.raises(InputError, match="k must be at least 1"):
        index.search("anything", 0)


def test_other_model_is_refused_by_name_with_the_remedy(tmp_path: Path) -> None:
    open_index(tmp_path).sync([Document("a", "Text.")])
    with pytest.raises(GemError) as caught:
        open_index(tmp_path, FakeGem("other"))
    message = str(caught.value)
    assert "'fake'" in message
    assert "'other'" in message
    assert "gem-rag index --reembed" in message
    assert len(open_index(tmp_path)) == 1


def test_other_settings_are_refused(tmp_path: Path) -> None:
    open_index(tmp_path).sync([Document("a", "Text.")])
    with pytest.raises(InputError, match="made with store=faiss, not chroma"):
        open_index(tmp_path, store="chroma")
    with pytest.raises(InputError, match="made with chunk_tokens=64, not 32"):
        open_index(tmp_path, chunk_tokens=32)
    with pytest.raises(InputError, match="chunk_tokens must be from 16 to 64"):
        open_index(tmp_path, chunk_tokens=65)
    with pytest.raises(InputError, match="there is no store 'milvus'"):
        open_index(tmp_path, store="milvus")


def test_a_chroma_index_without_chromadb_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "gem_rag.rag.stores.chroma_store", raising=False)
    monkeypatch.setitem(sys.modules, "chromadb", None)
    with pytest.raises(InputError, match=r"pip install 'gem-rag\[chroma\]'"):
        open_index(tmp_path, store="chroma")
    assert not (tmp_path / "index").exists()


@pytest.mark.slow
def test_a_faiss_index_does_not_need_chromadb(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['chromadb'] = None\nsys.path.insert(0, sys.argv[1])\n"
        "from fakes import FakeGem\nfrom gem_rag import Document, Index\n"
        "index = Index.open(sys.argv[2], FakeGem())\nindex.sync([Document('a', 'Text.')])\n"
        "print(index.search('text', 1)[0].chunk.text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "index")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "Text.\n"


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files and no index"):
        open_index(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Index.open(tmp_path / "file", FakeGem())


def test_index_that_is_not_there_is_refused_without_create(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no index in"):
        open_index(tmp_path, create=False)


def test_damaged_and_missing_vectors_are_named(tmp_path: Path) -> None:
    open_index(tmp_path).sync([Document("a", "Text.")])
    (file,) = (tmp_path / "index").glob("vectors-*.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(GemError, match=f"{file.name} is damaged.*--reembed"):
        open_index(tmp_path).search("text")
    file.unlink()
    with pytest.raises(GemError, match=f"{file.name} is missing"):
        open_index(tmp_path).search("text")
    index = Index.reembed(tmp_path / "index", FakeGem())
    assert found(index, "text") == found(open_index(tmp_path), "text") == ["a"]


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    open_index(tmp_path).sync([Document("a", "Text.")])
    file = tmp_path / "index" / "index.db"
    whole = file.read_bytes()
    for at in range(10, len(whole), 1009):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(GemError):  # a page that a search does not read may be anything
            assert found(open_index(tmp_path), "text") == ["a"]
    for damaged in (whole[:5000], b"not a database" * 400):
        file.write_bytes(damaged)
        with pytest.raises(GemError, match="index.db is damaged"):
            found(open_index(tmp_path), "text")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.sync([Document("a", "Text.")])
    with Database(tmp_path / "index").writing() as connection:
        dataclasses.replace(index.manifest, format_version=99).write(connection)
    with pytest.raises(InputError, match="has index format 99"):
        open_index(tmp_path)


def test_second_writer_is_refused_and_readers_go_on(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.sync([Document("a", "Text.")])
    with FileLock(tmp_path / "index" / ".lock"):
        with pytest.raises(GemError, match="another process is writing"):
            open_index(tmp_path).sync([Document("b", "More.")])
        assert found(open_index(tmp_path), "text") == ["a"]


def test_sync_takes_up_what_another_writer_committed(tmp_path: Path) -> None:
    first, second = open_index(tmp_path), open_index(tmp_path)
    first.sync([Document("a", "First.")])
    second.sync([Document("b", "Second.")])
    assert second.sources == ["a", "b"]


def test_full_disk_leaves_the_index_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(tmp_path)
    index.sync([Document("a", "Text.")])

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(GemError, match=r"\(No space left on device\): the index is as it was"):
            index.sync([Document("b", "More.")])
    assert index.sources == open_index(tmp_path).sources == ["a"]
    index.sync([Document("b", "More.")])
    assert open_index(tmp_path).sources == ["a", "b"]


# -- re-embedding ------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_reembed_keeps_texts_and_changes_vectors(tmp_path: Path, docs: Path, store: str) -> None:
    open_index(tmp_path, FakeGem("old", 64), store).sync([docs])
    shutil.rmtree(docs)  # the index's own copy is enough
    index = Index.reembed(tmp_path / "index", FakeGem("new", 32))
    assert (index.manifest.dim, index.manifest.model) == (32, "new")
    reopened = open_index(tmp_path, FakeGem("new", 32))
    assert found(reopened, "water pump", 1) == ["docs/pump.txt"]
    with pytest.raises(GemError, match="was made by model 'new'"):
        open_index(tmp_path, FakeGem("old", 64))


@pytest.mark.parametrize("store", STORES)
def test_failed_reembed_leaves_the_old_index(tmp_path: Path, docs: Path, store: str) -> None:
    class Failing(FakeGem):
        def embed_documents(self, *args: Any, **kwargs: Any) -> np.ndarray:
            raise GemError("out of memory")

    open_index(tmp_path, FakeGem("old"), store).sync([docs])
    with pytest.raises(GemError, match="out of memory"):
        Index.reembed(tmp_path / "index", Failing("new", 32))
    assert found(open_index(tmp_path, FakeGem("old")), "lamp", 1) == ["docs/lamp.txt"]


def test_reembed_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no index"):
        Index.reembed(tmp_path / "nowhere", FakeGem())


# -- properties --------------------------------------------------------------------------------

LIBRARY = st.dictionaries(
    st.sampled_from("abcdef"), st.sampled_from(["red apple", "green pear", "blue plum\n\nold fig"])
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LIBRARY, min_size=1, max_size=4))
def test_after_any_syncs_the_index_equals_a_new_one(
    tmp_path_factory: pytest.TempPathFactory, versions: list[dict[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("property")
    docs = root / "docs"
    for version in versions:
        shutil.rmtree(docs, ignore_errors=True)
        docs.mkdir()
        for name, text in version.items():
            (docs / f"{name}.txt").write_text(text)
        grown = Index.open(root / "grown", FakeGem())
        grown.sync([docs])
    fresh = Index.open(root / "fresh", FakeGem())
    fresh.sync([docs])
    assert grown.sources == fresh.sources
    if fresh.sources:
        for question in ("apple", "old plum", "green"):
            a, b = grown.search(question, 20), fresh.search(question, 20)
            assert {(h.chunk.text, round(h.score, 5)) for h in a} == {
                (h.chunk.text, round(h.score, 5)) for h in b
            }


@pytest.mark.parametrize("store", STORES)
def test_searches_go_on_while_a_sync_commits(tmp_path: Path, store: str) -> None:
    index = open_index(tmp_path, store=store)
    index.sync([Document("a", "water pump")])
    failures: list[BaseException] = []
    done = threading.Event()

    def search() -> None:
        try:
            while not done.is_set():
                assert index.search("water pump", 1)[0].chunk.text == "water pump"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(10):
        index.sync([Document("b", f"some other text {n}")])
    done.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_an_index_knows_what_its_model_computed_in(tmp_path: Path) -> None:
    gem = FakeGem()
    (tmp_path / "a.txt").write_text("a pump moves water")
    index = Index.open(tmp_path / "index", gem)
    index.sync([tmp_path / "a.txt"])
    other = FakeGem()
    other.dtype = "bfloat16"
    with pytest.warns(
        UserWarning, match=r"embedded in float32 .* load the model with dtype='float32'"
    ):
        opened = Index.open(tmp_path / "index", other)
    assert opened.search("water", k=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Index.open(tmp_path / "index", gem)
        Index.reembed(tmp_path / "index", other)
        Index.open(tmp_path / "index", other)
