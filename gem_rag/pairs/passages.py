"""Documents to passages, each under its headings."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gem_rag.core.truncation import BETWEEN
from gem_rag.documents.document import Chunk, Document
from gem_rag.documents.readers import read_paths
from gem_rag.documents.splitting import Splitter
from gem_rag.documents.structure import Section, parse_structure, split_sections
from gem_rag.errors import InputError
from gem_rag.rag.reading import make_readings

_MIN_LETTERS = 40  # that a passage needs to say anything


@dataclass(frozen=True)
class Passage:
    """A part of a document.

    Attributes:
        source: The document's name.
        title: The document's title.
        headings: From the highest level down to its own.
        first: Whether it is the first of its section.
        text: Without the headings.
        chunk: As an index embeds it: title and headings, then the text.
        context: The chunks before it that are read with it.
    """

    source: str
    title: str
    headings: tuple[str, ...]
    first: bool
    text: str
    chunk: str
    context: str = ""

    @property
    def section(self) -> str:
        """Names the section that it is of, in all documents."""
        return " > ".join((self.source, *self.headings))


def read_passages(
    paths: Sequence[Path], tokenizer: Any, max_tokens: int, context_tokens: int = 0
) -> list[Passage]:
    """Read files and folders.

    Args:
        paths: Files and folders.
        tokenizer: A `tokenizers.Tokenizer`.
        max_tokens: Of a passage, its title included.
        context_tokens: Of passages that are read together; 0 for passages without context.

    Returns:
        Passages with something to read, in order.

    Raises:
        InputError: There are none.
    """
    splitter = Splitter(tokenizer, max_tokens)
    passages = [
        passage
        for document in read_paths(paths, Path.cwd())
        if isinstance(document, Document)
        for passage in _passages(document, splitter, context_tokens)
        if sum(map(str.isalpha, passage.text)) >= _MIN_LETTERS
    ]
    if not passages:
        raise InputError(
            f"found nothing to read in {', '.join(map(str, paths))}: give documents with text in "
            "them (text, markup, tables, source code, and with gem-rag[files] PDF, office files, "
            "notebooks, e-mail, HTML)"
        )
    return passages


def is_held_out(passage: Passage, share: float) -> bool:
    """Whether a passage's section is among so many that are kept to measure on.

    It is drawn by the names of its file and headings, wherever the folder stands.
    """
    name = " > ".join((passage.source.rpartition("/")[2], *passage.headings))
    return int(hashlib.md5(name.encode()).hexdigest(), 16) % 1000 < share * 1000


def _passages(document: Document, splitter: Splitter, context_tokens: int) -> Iterator[Passage]:
    sections = split_sections(document, parse_structure(document))
    starts = [section.start for section in sections]
    chunks = splitter.split(document)
    readings = make_readings(
        [chunk.passage for chunk in chunks], splitter.count_tokens, context_tokens
    )
    for chunk, reading in zip(chunks, readings, strict=True):
        section = sections[bisect_right(starts, chunk.stop - 1) - 1]
        context = reading.text[: reading.start].removesuffix(BETWEEN)
        yield _passage(document, chunk, section, context)


def _passage(document: Document, chunk: Chunk, section: Section, context: str) -> Passage:
    body = min(max(chunk.start, section.body), chunk.stop)
    return Passage(
        source=document.source,
        title=" ".join(document.title.lstrip("# ").split()),  # docstrings' titles are marked
        headings=tuple(" ".join(name.split()) for name in section.path),
        first=chunk.start <= section.body,
        text=document.text[body : chunk.stop].strip(),
        chunk=chunk.passage,
        context=context,
    )
