"""What is read and indexed: `Document`, the files that were `Skipped`, and `Chunk`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["text", "markdown"]


@dataclass(frozen=True)
class Document:
    """A text with a name.

    source: where it comes from; what citations show, unique in an index.
    text: all of it.
    title: a line that says what it is about, put before chunks that do not begin with it.
    kind: how to split it.
    """

    source: str
    text: str
    title: str = ""
    kind: Kind = "text"


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be indexed, and one sentence that says why and what to do."""

    source: str
    reason: str


@dataclass(frozen=True)
class Chunk:
    """A part of a document.

    source: the document's.
    title: the document's, then the heading the chunk stands under, as far as the chunk itself
        does not begin with them.
    start, stop: its [start, stop) characters in the document's text.
    text: those characters.
    """

    source: str
    title: str
    start: int
    stop: int
    text: str

    @property
    def passage(self) -> str:
        """What is embedded, and read when answering: the text under its title."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @cached_property
    def id(self) -> str:
        """The same for the same passage at the same place of the same source, and only then."""
        key = f"{self.source}\0{self.start}\0{self.passage}"
        return hashlib.sha256(key.encode()).hexdigest()[:32]
