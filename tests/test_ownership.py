"""A sync removes what it was asked about and is gone, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGem

from gem_rag import Document, Index, InputError


def open_index(folder: Path) -> Index:
    return Index.open(folder, FakeGem())  # type: ignore[arg-type]


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(text)
    return folder


def test_documents_from_elsewhere_and_from_python_stay(tmp_path: Path) -> None:
    project = write(tmp_path / "project", a="water pump")
    write(tmp_path / "shared", b="night lamp")
    index = open_index(project / "index")
    index.sync([project / "a.md", tmp_path / "shared", Document("note", "open door")])
    report = index.sync(project)
    assert report.removed == []
    assert index.sources == ["../shared/b.md", "a.md", "note"]


def test_a_folder_whose_name_is_the_beginning_of_anothers_removes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "C", a="water pump")
    write(tmp_path / "docs" / "C#", b="night lamp")
    index = open_index(tmp_path / "index")
    index.sync([tmp_path / "docs"])
    (tmp_path / "docs" / "C" / "a.md").unlink()
    report = index.sync([tmp_path / "docs" / "C"])
    assert report.removed == ["docs/C/a.md"]
    assert index.sources == ["docs/C#/b.md"]


def test_a_link_that_is_removed_or_leads_elsewhere_is_followed(tmp_path: Path) -> None:
    store = write(tmp_path / "store", x="water pump", y="open door")
    docs = write(tmp_path / "docs", keep="night lamp")
    (docs / "link.md").symlink_to(store / "x.md")
    index = open_index(tmp_path / "index")
    index.sync([docs])
    assert index.sources == ["docs/keep.md", "docs/link.md"]
    (docs / "link.md").unlink()
    (docs / "link.md").symlink_to(store / "y.md")
    assert index.sync([docs]).changed == ["docs/link.md"]
    assert index.document("docs/link.md").text == "open door"
    (docs / "link.md").unlink()
    assert index.sync([docs]).removed == ["docs/link.md"]


def test_an_index_that_moves_keeps_its_sources(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", a="water pump", b="night lamp")
    open_index(tmp_path / "index").sync([docs])
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "index", tmp_path / "moved" / "index")
    write(docs, a="red pump")
    index = open_index(tmp_path / "moved" / "index")
    report = index.sync([docs])
    assert (report.added, report.changed, report.unchanged) == (
        [], ["docs/a.md"], ["docs/b.md"],
    )  # fmt: skip


@pytest.mark.parametrize("how", ["together", "documents"])
def test_documents_that_move_keep_their_sources(tmp_path: Path, how: str) -> None:
    here = tmp_path / "here"
    open_index(here / "index").sync([write(here / "docs", a="water pump")])
    there = tmp_path / "there"
    if how == "together":
        shutil.move(here, there)
        index, docs = open_index(there / "index"), there / "docs"
    else:
        docs = there / "docs"
        shutil.move(here / "docs", docs)
        index = open_index(here / "index")
    report = index.sync([docs])
    assert (report.added, report.removed, report.unchanged) == ([], [], ["docs/a.md"])


def test_a_folder_that_cannot_be_listed_is_reported_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = write(tmp_path / "docs", a="water pump")
    write(docs / "team", b="night lamp")
    index = open_index(tmp_path / "index")
    index.sync([docs])
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if os.fspath(path).endswith("team"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = index.sync([docs])
    assert [skip.source for skip in report.skipped] == ["docs/team"]
    assert (report.removed, report.complete) == ([], False)
    assert index.sources == ["docs/a.md", "docs/team/b.md"]


def test_a_root_above_others_takes_nothing_twice(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", a="water pump")
    write(docs / "sub", b="night lamp")
    index = open_index(tmp_path / "index")
    index.sync([docs / "sub"])
    report = index.sync([docs])
    assert (report.added, report.unchanged) == (["docs/a.md"], ["docs/sub/b.md"])
    assert index.sync([docs]).added == []


def test_what_a_commit_will_write_is_never_written_through_a_link(tmp_path: Path) -> None:
    index = open_index(tmp_path / "index")
    index.sync([Document("a", "water pump")])
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (f".vectors-{FakeGem().fingerprint[:8]}.new", ".nearest.new"):
        (tmp_path / "index" / name).symlink_to(victim)
    index.sync([Document("b", "night lamp")])
    assert victim.read_text() == "mine"
    assert open_index(tmp_path / "index").sources == ["a", "b"]


def test_one_path_may_be_given_as_a_string(tmp_path: Path) -> None:
    index = open_index(tmp_path / "index")
    assert index.sync(str(write(tmp_path / "docs", a="water pump"))).added == ["docs/a.md"]


def test_the_index_in_the_folder_that_is_indexed_is_not_counted(tmp_path: Path) -> None:
    project = write(tmp_path / "project", a="water pump")
    index = open_index(project / "index")
    index.sync(project)
    assert index.sync(project).passed_over == {}


def test_kinds_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", a="water pump")
    for name in ("x.jpg", "y.jpg", "z"):
        (docs / name).write_bytes(b"\0")
    report = open_index(tmp_path / "index").sync([docs])
    assert report.passed_over == {".jpg": 2, "no suffix": 1}


# -- what is left out, and removed ---------------------------------------------------------------


def test_what_comes_to_be_left_out_is_removed(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", a="water pump", b="open door")
    write(docs / "node_modules" / "x", c="night lamp")
    index = open_index(tmp_path / "index")
    report = index.sync(docs)
    assert report.added == ["docs/a.md", "docs/b.md"]
    assert report.left_out == {"folders of installed packages": 1}
    assert index.sync(docs, exclude=["b.*"]).removed == ["docs/b.md"]
    assert index.sync(docs, include=["b.md"]).added == ["docs/b.md"]
    assert index.sources == ["docs/b.md"]


def test_documents_are_removed_by_name_file_or_folder(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", a="water pump", b="open door")
    write(docs / "more", c="night lamp", d="day lamp")
    (docs / "e.py").write_text('"""Words."""\ndef f():\n    """More words."""\n')
    index = open_index(tmp_path / "index")
    index.sync([docs, Document("note", "shut door")])
    assert index.remove("docs/a.md") == ["docs/a.md"]
    assert index.remove(["docs/more/", "note"]) == ["docs/more/c.md", "docs/more/d.md", "note"]
    assert index.remove("docs/e.py") == ["docs/e.py", "docs/e.py#f"]
    assert index.sources == ["docs/b.md"]
    assert open_index(tmp_path / "index").sources == ["docs/b.md"]
    assert [hit.chunk.source for hit in index.search("door", k=9)] == ["docs/b.md"]


def test_a_document_made_in_python_is_removed_before_a_folder_of_its_name(tmp_path: Path) -> None:
    index = open_index(tmp_path / "index")
    index.sync([write(tmp_path / "docs", a="water pump"), Document("docs", "shut door")])
    assert index.remove("docs") == ["docs"]
    assert index.remove("docs") == ["docs/a.md"]


def test_a_name_that_the_index_does_not_have_removes_nothing(tmp_path: Path) -> None:
    index = open_index(tmp_path / "index")
    index.sync(write(tmp_path / "docs", a="water pump"))
    with pytest.raises(InputError, match=r"nothing named 'docs/b.md' \(did you mean 'docs/a.md'\?"):
        index.remove(["docs/a.md", "docs/b.md"])
    assert index.sources == ["docs/a.md"]


def test_removing_all_leaves_an_empty_index(tmp_path: Path) -> None:
    index = open_index(tmp_path / "index")
    docs = write(tmp_path / "docs", a="water pump")
    index.sync(docs)
    assert index.remove("docs") == ["docs/a.md"]
    assert len(open_index(tmp_path / "index")) == 0
    assert index.sync(docs).added == ["docs/a.md"]


# -- places --------------------------------------------------------------------------------------


def test_a_definition_that_moves_is_where_it_is_and_not_changed(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs")
    (docs / "a.py").write_text('def f():\n    """Water pump."""\n')
    index = open_index(tmp_path / "index")
    index.sync(docs)
    assert index.search("water pump")[0].place == "line 1"
    (docs / "a.py").write_text('import os\n\ndef f():\n    """Water pump."""\n')
    report = index.sync(docs)
    assert (report.changed, report.embedded) == ([], 0)
    assert index.search("water pump")[0].place == "line 3"
    assert open_index(tmp_path / "index").search("water pump")[0].place == "line 3"
