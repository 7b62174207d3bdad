"""Pairs from Debian's descriptions of its packages: the short one finds the long one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gem_rag.pairs.pair import Pair

_FIELD = re.compile(r"^Description-en: (.+)\n((?: .*\n)+)", re.M)
_MIN_LETTERS = 60
_MIN_WORDS = 3  # of a short description


def description_pairs(folder: Path) -> Iterator[Pair]:
    """One pair for each paragraph that no earlier package has.

    Packages of one source share paragraphs, and what is special to one of them often stands last.

    Args:
        folder: Of apt's lists, with files *Translation-en (deb822 paragraphs).
    """
    seen: set[str] = set()
    for file in sorted(folder.glob("*Translation-en")):
        for short, long in _FIELD.findall(file.read_text(encoding="utf-8") + "\n"):
            new = []
            for paragraph in re.split(r"^ \.\n", long, flags=re.M):
                text = "\n".join(line[1:] for line in paragraph.splitlines())
                if text not in seen and sum(map(str.isalpha, text)) >= _MIN_LETTERS:
                    seen.add(text)
                    new.append(text)
            if new and len(short.split()) >= _MIN_WORDS:
                yield Pair(short, "\n\n".join(new), "description", "Debian", short)
