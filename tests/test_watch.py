"""An index that follows its files through edits, as they are made."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGem

from gem_rag import Index, InputError
from gem_rag.errors import GemError
from gem_rag.rag.sync import SyncReport

pytest.importorskip("watchfiles")
from gem_rag.rag.watch import follow

PATIENCE = 60  # seconds until a change must have been seen


class Followed:
    """An index that is followed in a thread."""

    def __init__(self, docs: Path, folder: Path, **options: Any) -> None:
        self.index = Index.open(folder, FakeGem())  # type: ignore[arg-type]
        self.stop = threading.Event()
        self.reports: queue.Queue[SyncReport | GemError] = queue.Queue()
        self.thread = threading.Thread(target=self._run, args=([docs],), kwargs=options)
        self.thread.start()

    def _run(self, paths: list[Path], **options: Any) -> None:
        for report in follow(self.index, paths, stop=self.stop, **options):
            self.reports.put(report)

    def next(self) -> Any:
        return self.reports.get(timeout=PATIENCE)

    def close(self) -> None:
        self.stop.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Followed]:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("water pump")
    one = Followed(tmp_path / "docs", tmp_path / "docs" / "index", exclude=["draft*"])
    assert one.next().added == ["a.md"]
    yield one
    one.close()


@pytest.mark.slow
def test_a_hundred_edits_are_followed(followed: Followed, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for number in range(100):
        file = docs / f"{number % 7}.md"
        match number % 4:
            case 3 if file.exists():
                file.unlink()
                assert followed.next().removed == [file.name]
            case _:
                known = file.exists()
                file.write_text(f"edit {number}")
                report = followed.next()
                assert (report.changed if known else report.added) == [file.name]
                assert followed.index.search(f"edit {number}", 1)[0].chunk.text == f"edit {number}"
    assert set(followed.index.sources) == {file.name for file in docs.glob("*.md")}


def test_what_is_left_out_wakes_nobody(followed: Followed, tmp_path: Path) -> None:
    (tmp_path / "docs" / "draft.md").write_text("open door")
    (tmp_path / "docs" / "b.md").write_text("night lamp")
    assert followed.next().added == ["b.md"]
    assert followed.reports.empty()


def test_a_sync_that_fails_is_said_and_the_next_change_waited_for(
    followed: Followed, tmp_path: Path
) -> None:
    file = tmp_path / "docs" / "a.md"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "sync", lambda *_, **__: (_ for _ in ()).throw(GemError("busy")))
        file.write_text("open door")
        assert str(followed.next()) == "busy"
    file.write_text("open door again")
    assert followed.next().changed == ["a.md"]


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index", FakeGem())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there is no file or folder"):
        next(follow(index, [tmp_path / "nowhere"]))


@pytest.mark.slow
def test_the_command_follows_until_it_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    file = tmp_path / "docs" / "a.md"
    file.write_text("water pump")
    command = [sys.executable, "-m", "gem_rag", "index", "docs", "--watch"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        killer = threading.Timer(5 * PATIENCE, process.kill)
        killer.start()
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("1 added")
        file.write_text("open door")
        assert process.stdout.readline().startswith("0 added, 1 changed")
        process.send_signal(signal.SIGINT)
        assert process.wait(2 * PATIENCE) == 130
        killer.cancel()
        assert process.stderr.read() == "gem-rag: interrupted; what was committed before is kept\n"


@pytest.mark.slow
def test_an_interrupt_that_is_lost_ends_the_command_all_the_same(tmp_path: Path) -> None:
    """As one is that comes in a finalizer: Python prints it and goes on."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("water pump")
    code = (
        "import os, signal\n"
        "from gem_rag.cli import index_command\n"
        "from gem_rag.cli.app import main\n"
        "def lose(*_):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        print('lost', flush=True)\n"
        "index_command._print_report = lose\n"
        "main(['index', 'docs', '--watch'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("lost\n", 130)
