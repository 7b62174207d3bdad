"""What is read and indexed: documents, the files that were skipped, and chunks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Kind = Literal["text", "markdown", "rst"]


@dataclass(frozen=True)
class Document:
    """A text with a name.

    Attributes:
        source: Where it comes from; what citations show, unique in an index.
        text: All of it.
        title: A line that says what it is about, put before every chunk.
        kind: The markup, which decides where headings are and how the text is split.
        digest: Of the file that the text was converted from, so that it is not converted again;
            empty for text that is read as it is.
        file: The source of the file it was read from; empty for documents made in Python.
    """

    source: str
    text: str
    title: str = ""
    kind: Kind = "text"
    digest: str = field(default="", compare=False)
    file: str = field(default="", compare=False)


@dataclass(frozen=True)
class Skipped:
    """A file or folder that cannot be indexed.

    Attributes:
        source: Its name.
        reason: One sentence that says why, and what to do.
        unreadable: Whether the system would not let it be read, so that nobody knows what is in it.
    """

    source: str
    reason: str
    unreadable: bool = False


@dataclass(frozen=True)
class PassedOver:
    """How many files of each kind that cannot be indexed, by suffix, were in the folders read."""

    counts: dict[str, int]


@dataclass(frozen=True)
class Chunk:
    """A part of a document.

    Attributes:
        source: The document's.
        title: The document's title and the headings above the chunk; for a chunk that begins inside
            a table also the table's header.
        start: Its first character in the document's text.
        stop: The character after its last one.
        text: Its characters.
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
