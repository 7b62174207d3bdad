"""Which files a sync owns: the roots of an index, and the names of the sources below them.

A root is a file or folder that was synced. The index records its absolute path under a name, and
sources begin with that name, so they stay the same when the index moves, and when the root does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from gem_rag.documents.readers import source_name


class Roots:
    """The recorded roots, and those that a sync adds.

    Args:
        recorded: Absolute paths by name, from the manifest.
        base: The folder that holds the index, which new names are relative to.

    Attributes:
        paths: Absolute paths by name.
    """

    def __init__(self, recorded: dict[str, str], base: Path) -> None:
        self.paths = {name: Path(path) for name, path in recorded.items()}
        self._base = base

    def add(self, path: Path) -> None:
        """Record a file or folder that is synced.

        One that is where a root of its name was, seen from the index, is that root: index and
        documents were moved or copied together. So is one that has the name of a root that is gone.
        """
        path = absolute(path)
        if is_within_any(path, self.paths.values()):
            return
        name = source_name(path, self._base)
        if name not in self.paths:
            name = self._name_before_move(path) or name
        self.paths[name] = path

    def source(self, file: Path) -> str:
        """The source of a file below a root: the root's name, and the way from there."""
        file = absolute(file)
        name, root = max(
            ((name, root) for name, root in self.paths.items() if is_within(file, root)),
            key=lambda item: len(item[1].parts),
        )
        if file == root:
            return name
        relative = source_name(file, root)
        return relative if name == "." else f"{name}/{relative}"

    def path_of(self, file: str) -> Path:
        """Where a file is, or was, by its source."""
        paths = [self._base / file]
        for name, root in self.paths.items():
            if file == name:
                paths.append(root)
            elif name == "." or file.startswith(f"{name}/"):
                paths.append(root / (file if name == "." else file.removeprefix(f"{name}/")))
        return absolute(paths[-1] if len(paths) > 1 else paths[0])

    def recorded(self) -> dict[str, str]:
        """The roots for the manifest."""
        return {name: os.fsdecode(root) for name, root in sorted(self.paths.items())}

    def _name_before_move(self, path: Path) -> str | None:
        """The name of a root that is gone from its place and had this file name."""
        gone = [
            name
            for name, root in self.paths.items()
            if root.name == path.name and not root.exists()
        ]
        return gone[0] if len(gone) == 1 else None


def absolute(path: Path) -> Path:
    """An absolute path without dots; links stay, since a link may lead elsewhere tomorrow."""
    return Path(os.path.abspath(path))


def is_within(path: Path, root: Path) -> bool:
    """Whether a path is the root, or below it."""
    return path == root or root in path.parents


def is_within_any(path: Path, roots: Iterable[Path]) -> bool:
    """Whether a path is one of the roots, or below one."""
    return any(is_within(path, root) for root in roots)
