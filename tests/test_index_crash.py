"""A sync killed with SIGKILL at each of its steps leaves the last committed index."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FakeGem

from gem_rag.rag.index import Index

CHILD = Path(__file__).with_name("crash_child.py")
BEFORE = {"a.txt": "water pump", "b.txt": "night lamp"}
AFTER = {"a.txt": "water pump", "b.txt": "day lamp", "c.txt": "open door"}


def write_docs(root: Path, texts: dict[str, str]) -> None:
    shutil.rmtree(root / "docs", ignore_errors=True)
    (root / "docs").mkdir(parents=True)
    for name, text in texts.items():
        (root / "docs" / name).write_text(text)


def run_child(root: Path, store: str, at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CHILD), str(root), store, str(at)],
        capture_output=True,
        text=True,
        check=False,
    )


def texts(root: Path, store: str) -> set[str]:
    """What a new process's user would find."""
    index = Index.open(root / "index", FakeGem(), store)  # type: ignore[arg-type]
    if not len(index):
        return set()
    return {hit.chunk.text for hit in index.search("lamp", 10)}


@pytest.mark.parametrize("store", ["faiss", "chroma"])
@pytest.mark.parametrize("first", [True, False], ids=["first-commit", "later-commit"])
def test_killed_at_every_step(tmp_path: Path, store: str, first: bool) -> None:
    """Before or after, never between; and the next sync ends where it should."""
    start = tmp_path / "start"
    if not first:
        write_docs(start, BEFORE)
        Index.open(start / "index", FakeGem(), store).sync([start / "docs"])  # type: ignore[arg-type]
    write_docs(start, AFTER)
    before = set() if first else set(BEFORE.values())
    seen = set()
    for at in range(1, 100):
        root = tmp_path / f"killed-at-{at}"
        shutil.copytree(start, root)
        done = run_child(root, store, at)
        if done.returncode == 0:
            assert at > 8, "there are more steps than these"
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        left = texts(root, store)
        assert left in (before, set(AFTER.values()))
        seen.add(frozenset(left))
        Index.open(root / "index", FakeGem(), store).sync([root / "docs"])  # type: ignore[arg-type]
        assert texts(root, store) == set(AFTER.values())
        shutil.rmtree(root)
    else:
        pytest.fail("the sync never ended")
    assert seen == {frozenset(before), frozenset(AFTER.values())}
