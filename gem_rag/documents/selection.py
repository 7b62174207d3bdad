"""Which files of a folder are read.

Left out are hidden files and folders, what `.gitignore` files name, folders of installed packages
(`node_modules`, virtual environments, `__pycache__`), and what the caller's own patterns leave out.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gem_rag.documents.document import LeftOut, Skipped
from gem_rag.documents.patterns import Patterns

_PACKAGES = frozenset({"node_modules", "__pycache__"})
_ENVIRONMENT = "pyvenv.cfg"  # stands in a virtual environment
_IGNORE_FILE = ".gitignore"


@dataclass(frozen=True)
class Selection:
    """Patterns as in a `.gitignore` file, relative to each folder that is read.

    Attributes:
        include: What is read, and nothing else; all if it is empty.
        exclude: What is not read.
        folders: Folders that are not read, such as the index itself.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    folders: Sequence[Path] = ()

    def files(
        self, folder: Path, suffixes: Container[str], left_out: LeftOut
    ) -> Iterator[Path | Skipped]:
        """Files of a folder in order of name, and the folders in it that cannot be listed.

        Args:
            folder: The folder.
            suffixes: Of the files that can be read.
            left_out: Counts what is left out.
        """
        return _Walk(self, folder, suffixes, left_out).files()


@dataclass
class _Walk:
    """One walk through a folder."""

    selection: Selection
    folder: Path
    suffixes: Container[str]
    left_out: LeftOut
    ignored_by: dict[Path, Patterns] = field(default_factory=dict)  # by the folder it is in

    def __post_init__(self) -> None:
        self.include = Patterns.of(self.selection.include)
        self.exclude = Patterns.of(self.selection.exclude)
        self.root = Path(os.path.abspath(self.folder))
        for parent in _repository(self.root):
            self._read_ignore_file(parent)
        if self._is_ignored(self.root, is_folder=True):  # asked for by name all the same
            self.ignored_by.clear()

    def files(self) -> Iterator[Path | Skipped]:
        denied: list[OSError] = []
        for name, folders, files in os.walk(self.folder, onerror=denied.append):
            here = Path(name)
            if _IGNORE_FILE in files:
                self._read_ignore_file(self._absolute(here))
            folders[:] = sorted(f for f in folders if self._takes_folder(here / f))
            yield from _unlisted(denied)
            yield from (here / file for file in sorted(files) if self._takes_file(here / file))
        yield from _unlisted(denied)

    def _takes_folder(self, path: Path) -> bool:
        if path.name.startswith(".") or any(_is_same(path, f) for f in self.selection.folders):
            return False
        if path.name in _PACKAGES or (path / _ENVIRONMENT).is_file():
            why = "folders of installed packages"
        elif path.is_symlink():
            why = "links to folders"
        elif self._is_ignored(self._absolute(path), is_folder=True):
            why = "what .gitignore names"
        elif self.exclude.match(self._relative(path), is_folder=True):
            why = "what was excluded"
        else:
            return True
        self.left_out.rules[why] += 1
        return False

    def _takes_file(self, path: Path) -> bool:
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            return False
        if suffix not in self.suffixes:
            self.left_out.kinds[suffix or "no suffix"] += 1
            return False
        if self._is_ignored(self._absolute(path), is_folder=False):
            why = "what .gitignore names"
        elif self.exclude.match(self._relative(path), is_folder=False):
            why = "what was excluded"
        elif self.selection.include and not self.include.match_above(self._relative(path)):
            why = "what was not included"
        else:
            return True
        self.left_out.rules[why] += 1
        return False

    def _is_ignored(self, path: Path, is_folder: bool) -> bool:
        """By the `.gitignore` file nearest to it that says anything about it."""
        for parent in path.parents:
            if parent in self.ignored_by:
                name = path.relative_to(parent).as_posix()
                said = self.ignored_by[parent].match(name, is_folder)
                if said is not None:
                    return said
        return False

    def _read_ignore_file(self, folder: Path) -> None:
        try:
            self.ignored_by[folder] = Patterns((folder / _IGNORE_FILE).read_bytes())
        except OSError:
            return

    def _absolute(self, path: Path) -> Path:
        return self.root / path.relative_to(self.folder)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _repository(folder: Path) -> list[Path]:
    """The folders above one, up to the repository's own; none outside a repository."""
    above: list[Path] = []
    for parent in folder.parents if not (folder / ".git").exists() else ():
        above.append(parent)
        if (parent / ".git").exists():
            return above
    return []


def _unlisted(denied: list[OSError]) -> Iterator[Skipped]:
    while denied:
        error = denied.pop(0)
        reason = f"{error.filename} cannot be read ({error.strerror}): check its permissions"
        yield Skipped(str(error.filename), reason, unreadable=True)


def _is_same(path: Path, other: Path) -> bool:
    return path.name == other.name and other.exists() and path.samefile(other)
