"""What is read to embed a chunk: its passage by itself, or after those before it.

In context, a document is read as its chunks' passages one after another, in windows of so many
tokens. The special tokens of each passage are observers that see it alone, and its own tokens have
seen what comes before. A window's vectors take one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gem_rag.core.arrays import FloatArray
from gem_rag.core.truncation import BETWEEN
from gem_rag.model import Gem
from gem_rag.rag.commit import passage_digest


class Reading(NamedTuple):
    """A passage and what is read before it.

    Attributes:
        text: All of it; the passage is its end.
        start: The first character of the passage.
    """

    text: str
    start: int = 0

    @property
    def digest(self) -> bytes:
        """Identifies the vector, for one model."""
        return passage_digest(f"{self.start}\0{self.text}" if self.start else self.text)


def make_readings(
    passages: Sequence[str], count_tokens: Callable[[str], int], context_tokens: int
) -> list[Reading]:
    """What is read to embed a document's passages.

    A window that is full is followed by one that begins with the last passages of it, up to half
    of a window. So what a passage is read after does not depend on what follows it.

    Args:
        passages: Of one document, in order.
        count_tokens: How many tokens a text has.
        context_tokens: The most tokens in a window; 0 to read each passage by itself.

    Returns:
        One for each passage.
    """
    if not context_tokens:
        return [Reading(passage) for passage in passages]
    sizes = [count_tokens(BETWEEN + passage) for passage in passages]
    found = []
    first = 0  # passage of the window
    for number, passage in enumerate(passages):
        if sum(sizes[first : number + 1]) > context_tokens:
            first = _next_window(sizes, number, context_tokens)
        before = "".join(text + BETWEEN for text in passages[first:number])
        found.append(Reading(before + passage, len(before)))
    return found


def embed_readings(gem: Gem, readings: Sequence[Reading]) -> FloatArray:
    """Vectors of the readings' passages, float32 [n, dim].

    Those of one window, if they follow one another, are read in one pass.
    """
    if not any(reading.start for reading in readings):
        return gem.embed_documents([reading.text for reading in readings])
    windows: list[tuple[str, list[tuple[int, int]]]] = []
    for reading in readings:
        if windows and reading.start and reading.text.startswith(windows[-1][0]):
            spans = windows.pop()[1]
        else:
            spans = []
        windows.append((reading.text, [*spans, (reading.start, len(reading.text))]))
    return gem.embed_chunks_batch(windows)


def _next_window(sizes: Sequence[int], number: int, most: int) -> int:
    """The first passage of a window in which a passage is the first that is new."""
    first, room = number, min(most // 2, most - sizes[number])
    while first and sizes[first - 1] <= room:
        first -= 1
        room -= sizes[first]
    return first
