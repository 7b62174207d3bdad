"""Indexes of format 1, which recorded neither titles nor files: read until gem-rag 0.2."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from gem_rag.documents.document import Chunk, Document

_SUFFIXES = (".txt", ".text", ".rst", ".md", ".markdown", ".py", ".pdf", ".docx", ".html", ".htm")
# "## Heading" of Markdown, or a line and its underline of reStructuredText.
_HEADING = re.compile(
    r"^(?:#{1,6} +(?P<marked>\S.*)|(?P<underlined>\S.*)\n([=\-*~^\"'#+`])\3{2,}[ \t]*)$",
    re.MULTILINE,
)


def chunks_of_format_1(document: Document, spans: Sequence[Sequence[int]]) -> Iterator[Chunk]:
    """The chunks of a document at [start, stop) spans, with the titles that were embedded."""
    headings = [
        (match.start(), (match["marked"] or match["underlined"]).strip())
        for match in _HEADING.finditer(document.text)
    ]
    heading = ""
    for start, stop in spans:
        while headings and headings[0][0] < start:
            heading = headings.pop(0)[1]
        text = document.text[start:stop]
        parts = dict.fromkeys(part[:100] for part in (document.title, heading) if part)
        title = " > ".join(part for part in parts if part not in text[: len(part) + 10])
        yield Chunk(document.source, title, start, stop, text)


def file_of_format_1(source: str) -> str:
    """The source of a document's file; empty for documents made in Python."""
    file = source.partition("#")[0]
    return file if PurePosixPath(file).suffix.lower() in _SUFFIXES else ""
