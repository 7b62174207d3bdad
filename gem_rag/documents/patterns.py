"""`Patterns`: paths that are named as in a `.gitignore` file."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from dulwich.ignore import Pattern, read_ignore_patterns
from dulwich.wildmatch import MalformedPattern

from gem_rag.errors import InputError


class Patterns:
    """Patterns as in a `.gitignore` file; of those that match a path the last one counts.

    Args:
        text: One pattern a line; lines that cannot be read are left out, as git does.
    """

    def __init__(self, text: bytes) -> None:
        self._patterns: list[Pattern] = []
        for line in read_ignore_patterns(io.BytesIO(text)):
            with suppress(MalformedPattern):
                self._patterns.insert(0, Pattern(line))

    @classmethod
    def of(cls, patterns: Sequence[str]) -> Patterns:
        """A caller's patterns; raises InputError for one that cannot be read."""
        for pattern in patterns:
            try:
                Pattern(os.fsencode(pattern))
            except MalformedPattern:
                raise InputError(
                    f"the pattern {pattern!r} cannot be read: write it as in a .gitignore file"
                ) from None
        return cls(os.fsencode("\n".join(patterns)))

    def match(self, path: str, is_folder: bool) -> bool | None:
        """Whether a path is named, or named with "!"; None if no pattern says anything."""
        name = os.fsencode(path)
        return next((p.is_exclude for p in self._patterns if p.matches(name, is_folder)), None)

    def match_above(self, path: str) -> bool:
        """Whether a file is named, or else a folder that it is in."""
        folders = [str(parent) for parent in PurePosixPath(path).parents][:-1]
        said = [self.match(path, False), *(self.match(folder, True) for folder in folders)]
        return next((bool(one) for one in said if one is not None), False)
