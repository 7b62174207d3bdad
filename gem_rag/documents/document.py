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
        source: Where it comes from; shown in citations, unique in an index.
        text: The whole text.
        title: A line that says what it is about, put before every chunk.
        kind: The markup, which decides where headings are and how the text is split.
        digest: Digest of the file that the text was converted from, so that an unchanged file is
            not converted again; empty for text that is read as it is.
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
        unreadable: Whether the system denied reading it, so that its content is unknown.
    """

    source: str
    reason: str
    unreadable: bool = False


@dataclass(frozen=True)
class PassedOver:
    """The files in the folders read that are of kinds which cannot be indexed.

    Attributes:
        counts: How many of them have each suffix.
    """

    counts: dict[str, int]


@dataclass(frozen=True)
class Chunk:
    """A part of a document.

    Attributes:
        source: The document's source.
        title: The document's title and the headings above the chunk; for a chunk that begins inside
            a table, also the table's header.
        start: Its first character in the document's text.
        stop: The character after its last one.
        text: The text between them.
    """

    source: str
    title: str
    start: int
    stop: int
    text: str

    @property
    def passage(self) -> str:
        """The title and the text: what is embedded, and read to answer a question."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @cached_property
    def id(self) -> str:
        """Identifies the source, the position and the passage together: 32 hexadecimal digits."""
        key = f"{self.source}\0{self.start}\0{self.passage}"
        return hashlib.sha256(key.encode()).hexdigest()[:32]
