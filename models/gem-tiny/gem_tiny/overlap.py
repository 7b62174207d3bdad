"""Which texts repeat others, by the runs of words that they share.

Knows nothing about where texts come from.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable

_RUN = 5  # words
_FEWEST = 6  # runs; shorter texts say too little of their own to be recognised


def runs(text: str) -> set[int]:
    """Numbers that stand for the runs of five words in a text, whatever lies between words."""
    words = re.findall(r"\w+", text.lower())
    return {
        zlib.crc32(" ".join(words[i : i + _RUN]).encode()) for i in range(len(words) - _RUN + 1)
    }


class Quotes:
    """Finds texts that quote at least `share` of one of the given texts."""

    def __init__(self, texts: Iterable[str], share: float = 0.5) -> None:
        self._where: dict[int, list[int]] = defaultdict(list)
        self._enough: list[float] = []
        for text in texts:
            found = runs(text)
            if len(found) >= _FEWEST:
                for run in found:
                    self._where[run].append(len(self._enough))
                self._enough.append(share * len(found))

    def stand_in(self, text: str) -> bool:
        """Whether the text quotes one of them."""
        counts = Counter(i for run in runs(text) for i in self._where.get(run, ()))
        return any(count >= self._enough[i] for i, count in counts.items())


class Novelty:
    """Remembers what was said, to tell texts that say it again."""

    def __init__(self, share: float = 0.25, every: int = 4) -> None:
        """share: how much of a text must be new. every: one run in so many is remembered."""
        self._share, self._every = share, every
        self._seen: set[int] = set()

    def adds(self, text: str) -> bool:
        """Whether the text says something new; it is remembered."""
        found = {run for run in runs(text) if run % self._every == 0}
        new = found - self._seen
        self._seen |= new
        return len(found) < _FEWEST or len(new) >= self._share * len(found)
