"""Which files of a folder are read: as git would have it, and as the caller says."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_rag.documents.document import LeftOut
from gem_rag.documents.selection import Selection

NAMES = ["a.txt", "b.txt", "c.md", "build/a.txt", "build/keep.txt", "docs/a.txt", "docs/x/b.txt"]
PATTERNS = [
    "a.txt", "/a.txt", "*.md", "build/", "build", "docs/*", "!docs/x/", "!build/keep.txt", "x/",
    "docs/**", "!*.txt", "**/b.txt", "# comment", "", "docs/x/b.txt", "[ab].txt", "!a.txt",
    "build/*",
]  # fmt: skip


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")


def chosen(folder: Path, **settings: list[str]) -> tuple[list[str], LeftOut]:
    left_out = LeftOut()
    found = Selection(**settings).files(folder, (".txt", ".md"), left_out)
    return [
        entry.relative_to(folder).as_posix() for entry in found if isinstance(entry, Path)
    ], left_out


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@given(
    top=st.lists(st.sampled_from(PATTERNS), max_size=4),
    nested=st.lists(st.sampled_from(PATTERNS), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_what_git_ignores_is_left_out(top: list[str], nested: list[str]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name).resolve()
        write(folder, *NAMES)
        (folder / ".gitignore").write_text("\n".join(top))
        (folder / "docs" / ".gitignore").write_text("\n".join(nested))
        run = ["git", "-C", name, "-c", "core.excludesFile=/dev/null"]
        subprocess.run([*run, "init", "-q"], check=True)
        listed = subprocess.run(
            [*run, "ls-files", "--others", "--exclude-standard"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        kept = {name for name in listed if not name.endswith(".gitignore")}
        assert set(chosen(folder)[0]) == kept


def test_a_folder_in_a_repository_is_under_its_rules_unless_they_leave_out_all(
    tmp_path: Path,
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("draft*\n/build/\n")
    write(tmp_path, "docs/a.txt", "docs/draft.txt", "build/a.txt", "build/draft.txt")
    assert chosen(tmp_path / "docs")[0] == ["a.txt"]
    assert chosen(tmp_path / "build")[0] == ["a.txt", "draft.txt"]  # asked for by name


def test_rules_above_count_in_a_repository_only(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.txt\n")
    write(tmp_path, "docs/a.txt")
    assert chosen(tmp_path / "docs")[0] == ["a.txt"]


def test_installed_packages_and_links_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "web/node_modules/x/readme.md", "env/lib/readme.md", "env/pyvenv.cfg")
    write(tmp_path, ".cache/b.txt", "c.bin", "notes/d.txt")
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    files, left_out = chosen(tmp_path)
    assert files == ["a.txt", "notes/d.txt"]
    assert left_out == LeftOut(
        Counter({".bin": 1}), Counter({"folders of installed packages": 2, "links to folders": 1})
    )


def test_patterns_of_the_caller(tmp_path: Path) -> None:
    write(tmp_path, *NAMES)
    files, left_out = chosen(tmp_path, include=["*.txt"], exclude=["build/", "docs/x"])
    assert files == ["a.txt", "b.txt", "docs/a.txt"]
    assert left_out.rules == Counter({"what was excluded": 2, "what was not included": 1})
    assert chosen(tmp_path, include=["/docs/"])[0] == ["docs/a.txt", "docs/x/b.txt"]
    assert chosen(tmp_path, exclude=["*", "!*.md"])[0] == ["c.md"]


def test_a_relative_folder_and_an_absolute_one_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *NAMES)
    (tmp_path / ".gitignore").write_text("build/\n/a.txt\n")
    absolute = chosen(tmp_path)[0]
    monkeypatch.chdir(tmp_path)
    assert chosen(Path())[0] == absolute
    assert "docs/a.txt" in absolute
    assert "a.txt" not in absolute
