"""A sync killed with SIGKILL at each of its steps leaves the last committed index."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeGem

from gem_rag.rag.index import Index

CHILD = Path(__file__).with_name("crash_child.py")
BEFORE = {"a.txt": "water pump", "b.txt": "night lamp"}
AFTER = {"a.txt": "water pump", "b.txt": "day lamp", "c.txt": "open door"}

pytestmark = pytest.mark.slow


class ForkingChild:
    """`crash_child.py`, which forks a process for each sync."""

    def __init__(self, store: str) -> None:
        self.store = "chroma" if store == "chroma" else "faiss"
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD), store],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def sync(self, root: Path, step: int) -> int:
        """The exit code of a sync that is killed at a step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(root), step]), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module", params=["faiss", "graph", "chroma"])
def child(request: pytest.FixtureRequest) -> Iterator[ForkingChild]:
    child = ForkingChild(request.param)
    yield child
    child.close()


def write_docs(root: Path, texts: dict[str, str]) -> None:
    shutil.rmtree(root / "docs", ignore_errors=True)
    (root / "docs").mkdir(parents=True)
    for name, text in texts.items():
        (root / "docs" / name).write_text(text)


def texts(root: Path, store: str) -> set[str]:
    """What a new process's user would find."""
    index = Index.open(root / "index", FakeGem(), store)  # type: ignore[arg-type]
    if not len(index):
        return set()
    return {hit.chunk.text for hit in index.search("lamp", 10)}


@pytest.mark.parametrize("first", [True, False], ids=["first-commit", "later-commit"])
def test_killed_at_every_step(tmp_path: Path, child: ForkingChild, first: bool) -> None:
    """Before or after, never between; and the next sync ends where it should."""
    store = child.store
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
        code = child.sync(root, at)
        if code == 0:
            assert at > 8, "there are more steps than these"
            break
        assert code == -signal.SIGKILL
        left = texts(root, store)
        assert left in (before, set(AFTER.values()))
        seen.add(frozenset(left))
        Index.open(root / "index", FakeGem(), store).sync([root / "docs"])  # type: ignore[arg-type]
        assert texts(root, store) == set(AFTER.values())
        shutil.rmtree(root)
    else:
        pytest.fail("the sync never ended")
    assert seen == {frozenset(before), frozenset(AFTER.values())}


def test_readers_see_what_another_process_commits(tmp_path: Path, child: ForkingChild) -> None:
    """Chroma keeps what a process has read of a database."""
    many = {f"{n}.txt": f"word{n} lamp" for n in range(60)}
    other = {f"{n}.txt": f"word{n} door" for n in range(60)}
    write_docs(tmp_path, many)
    Index.open(tmp_path / "index", FakeGem(), child.store).sync([tmp_path / "docs"])  # type: ignore[arg-type]
    for documents in (many, other, many, other):
        write_docs(tmp_path, documents)
        assert child.sync(tmp_path, 0) == 0  # no step is the one to die at
        index = Index.open(tmp_path / "index", FakeGem(), child.store)  # type: ignore[arg-type]
        assert {hit.chunk.text for hit in index.search("word3", 100)} == set(documents.values())
