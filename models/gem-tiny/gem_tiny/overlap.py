"""Near-duplicate detection by the runs of five words (5-gram shingles) that texts share."""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable

_SHINGLE_WORDS = 5
_MIN_SHINGLES = 6  # shorter texts are too common to be recognized


def hash_shingles(text: str) -> set[int]:
    """Hashes of all runs of five words in a text, ignoring case and what separates the words."""
    words = re.findall(r"\w+", text.lower())
    return {
        zlib.crc32(" ".join(words[i : i + _SHINGLE_WORDS]).encode())
        for i in range(len(words) - _SHINGLE_WORDS + 1)
    }


class QuoteDetector:
    """Detects texts that quote one of the given texts.

    Args:
        texts: The texts that may be quoted; texts of fewer than ten words are ignored.
        share: How much of a text a quote must repeat, from 0 to 1.
    """

    def __init__(self, texts: Iterable[str], share: float = 0.5) -> None:
        self._texts_with: dict[int, list[int]] = defaultdict(list)
        self._thresholds: list[float] = []
        for text in texts:
            shingles = hash_shingles(text)
            if len(shingles) >= _MIN_SHINGLES:
                for shingle in shingles:
                    self._texts_with[shingle].append(len(self._thresholds))
                self._thresholds.append(share * len(shingles))

    def matches(self, text: str) -> bool:
        """Whether the text quotes one of them."""
        counts = Counter(
            index for shingle in hash_shingles(text) for index in self._texts_with.get(shingle, ())
        )
        return any(count >= self._thresholds[index] for index, count in counts.items())


class NoveltyFilter:
    """Detects texts that mostly repeat earlier ones.

    Args:
        share: How much of a text must be new, from 0 to 1.
        every: Only one shingle in so many is stored, to save memory.
    """

    def __init__(self, share: float = 0.25, every: int = 4) -> None:
        self._share, self._every = share, every
        self._seen: set[int] = set()

    def add(self, text: str) -> bool:
        """Add a text; returns whether it was new."""
        shingles = {shingle for shingle in hash_shingles(text) if shingle % self._every == 0}
        new = shingles - self._seen
        self._seen |= new
        return len(shingles) < _MIN_SHINGLES or len(new) >= self._share * len(shingles)
