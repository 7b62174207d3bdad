"""What is read and indexed: documents, the files that were skipped, and chunks."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from gem_rag.errors import InputError

Kind = Literal["text", "markdown", "rst"]
MetadataValue = str | int | float | bool


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
        places: (first character, "page 3") of each page, slide, row or cell, in order; or the line
            of a definition; empty for text that has lines alone.
        metadata: What searches can ask for. Files have "type", their suffix without the dot, and
            "modified", a time in UTC like "2026-01-31T12:00:00Z".

    Raises:
        InputError: A value in the metadata is neither text nor a number nor a truth value.
    """

    source: str
    text: str
    title: str = ""
    kind: Kind = "text"
    digest: str = field(default="", compare=False)
    file: str = field(default="", compare=False)
    places: tuple[tuple[int, str], ...] = field(default=(), compare=False)
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name, value in self.metadata.items():
            if not isinstance(value, MetadataValue):
                raise InputError(
                    f"the metadata of {self.source!r} have {name}={value!r}: give text, a number "
                    "or a truth value"
                )

    def place(self, character: int) -> str:
        """Where a reader of the file finds a character: "page 3", "line 120", or nothing where a
        converted file has neither."""
        if self.places:
            after = bisect_right(self.places, character, key=lambda place: place[0])
            return self.places[max(after - 1, 0)][1]
        if self.digest or not self.file:
            return ""
        return f"line {self.text.count(chr(10), 0, character) + 1}"


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
class LeftOut:
    """How much of the folders read is not indexed.

    Attributes:
        kinds: Files of kinds that cannot be indexed, by suffix.
        rules: Files and whole folders that a rule leaves out, by the rule.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.kinds or self.rules)


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
    def span(self) -> tuple[int, int]:
        """[start, stop)."""
        return self.start, self.stop

    @property
    def passage(self) -> str:
        """The title and the text: what is embedded, and read to answer a question."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @cached_property
    def id(self) -> str:
        """Identifies the source, the position and the passage together: 32 hexadecimal digits."""
        key = f"{self.source}\0{self.start}\0{self.passage}"
        return hashlib.sha256(key.encode()).hexdigest()[:32]
