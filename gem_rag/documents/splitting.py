"""Documents to chunks of at most so many tokens, along the text's own structure.

A chunk belongs to one section, and its title is the path of headings that leads there. Every
character of a document that is not white space is in some chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from gem_rag.documents.document import Chunk, Document
from gem_rag.documents.structure import Section, Table, parse_structure, split_sections

TITLE_SEPARATOR = " > "
_TITLE_SHARE = 3  # a title takes at most one third of a passage's tokens
_MAX_RUN = 400  # characters without white space that are split as one
_MAX_BLOCK = 20_000  # characters: the splitter's time grows with the square of an unbroken text
_CAPACITY_STEP = 8  # tokens: every capacity needs a splitter, and each copies the tokenizer
_LONG_RUN = re.compile(rf"\S{{{_MAX_RUN}}}")


class _Part(NamedTuple):
    """A section as it is split.

    Attributes:
        document: Whose section it is.
        tables: The document's tables.
        title: The title of the section's chunks.
        has_headings: Whether headings are part of it.
        start: The first character, of the heading or of bare headings right above it.
        body: The first character after the heading.
        stop: The character after the last one.
    """

    document: Document
    tables: Sequence[Table]
    title: str
    has_headings: bool
    start: int
    body: int
    stop: int


class Splitter:
    """Splits documents by the tokens of one tokenizer.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        size: The most tokens in a passage, its title included.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._added = len(tokenizer.encode("").ids)  # BOS, say, which every passage has too
        self._splitter = lru_cache(maxsize=None)(self._make_splitter)

    def split(self, document: Document) -> list[Chunk]:
        """The chunks of a document, in order."""
        structure = parse_structure(document)
        sections = split_sections(document, structure)
        return [
            chunk
            for section, start in _join_bare_headings(sections, document.text)
            for chunk in self._split_part(
                _Part(
                    document,
                    structure.tables,
                    self._title(document.title, section),
                    bool(section.path),
                    start,
                    section.body,
                    section.stop,
                )
            )
        ]

    def _split_part(self, part: _Part) -> Iterator[Chunk]:
        """Chunks of one section, the heading together with the first piece of its body."""
        heading_tokens = self.count_tokens(part.document.text[part.start : part.body])
        if heading_tokens > self._size // 2:  # a paragraph that is marked as a heading
            part, heading_tokens = part._replace(body=part.start), 0
        room = self._size - self._added - self.count_tokens(part.title) - 1 - heading_tokens
        start = part.start
        for piece_start, piece_stop in self._pieces(part, max(_CAPACITY_STEP, room)):
            first = start if start < part.body else piece_start
            yield from self._fit(part, first, piece_stop)
            start = piece_stop
        if start < part.body:
            yield from self._fit(part, start, part.stop)

    def _pieces(self, part: _Part, room: int) -> Iterator[tuple[int, int]]:
        """[start, stop) characters of the body's pieces of at most about `room` tokens."""
        splitter = self._splitter(part.document.kind == "markdown", room - room % _CAPACITY_STEP)
        for start, stop in _blocks(part.document.text, part.body, part.stop):
            for at, piece in splitter.chunk_indices(part.document.text[start:stop]):
                yield start + at, start + at + len(piece)

    def _fit(self, part: _Part, start: int, stop: int) -> Iterator[Chunk]:
        """[start, stop) as a chunk, or halved until every passage fits."""
        text = part.document.text[start:stop]
        start, text = start + len(text) - len(text.lstrip()), text.strip()
        if not text:
            return
        title = self._with_table_header(part, start)
        if not part.has_headings and text.startswith(title):
            title = ""  # the first line of a text without headings
        chunk = Chunk(part.document.source, title, start, start + len(text), text)
        if self._added + self.count_tokens(chunk.passage) <= self._size or len(text) == 1:
            yield chunk
            return
        middle = start + _middle(text)
        yield from self._fit(part, start, middle)
        yield from self._fit(part, middle, start + len(text))

    # -- titles ------------------------------------------------------------------------------

    def _title(self, document_title: str, section: Section) -> str:
        """The document's title and the headings, in at most their share of the tokens: the last
        headings are kept, and the very last one is shortened."""
        names = (" ".join(name.split()) for name in (document_title, *section.path))
        parts = list(dict.fromkeys(filter(None, names)))
        limit = self._size // _TITLE_SHARE
        while len(parts) > 1 and self.count_tokens(TITLE_SEPARATOR.join(parts)) > limit:
            parts.pop(0)
        return self._shorten(TITLE_SEPARATOR.join(parts), limit)

    def _with_table_header(self, part: _Part, start: int) -> str:
        """The title, followed by the header of the table that a chunk begins inside of."""
        for table in part.tables:
            if table.body <= start < table.stop:
                header = part.document.text[table.start : table.body].strip()
                title = f"{part.title}\n{header}" if part.title else header
                return title if self.count_tokens(title) <= self._size // 2 else part.title
        return part.title

    def _shorten(self, text: str, limit: int) -> str:
        """The beginning of a text that has at most `limit` tokens, whole words if possible."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) <= limit:
            return text
        end = encoding.offsets[limit - 1][0]
        while end and self.count_tokens(text[:end]) > limit:  # a character may be several tokens
            end -= 1
        words, _, _ = text[:end].rpartition(" ")
        return (words if len(words) > end // 2 else text[:end]).rstrip()

    # -- tokens ------------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _make_splitter(self, markdown: bool, capacity: int) -> Any:
        kind = MarkdownSplitter if markdown else TextSplitter
        return kind.from_huggingface_tokenizer(self._tokenizer, capacity)


def _join_bare_headings(sections: Sequence[Section], text: str) -> Iterator[tuple[Section, int]]:
    """Each section that has a body, and where it starts together with the bare headings right
    above it: a heading alone says nothing."""
    start: int | None = None
    for section in sections:
        start = section.start if start is None else start
        if text[section.body : section.stop].strip() or section is sections[-1]:
            yield section, start
            start = None


def _blocks(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of parts that are split one by one: none is too long, and no long run of
    characters without white space is in a part with others."""
    while start < stop:
        end = min(stop, start + _MAX_BLOCK)
        if end < stop:
            breaks = (
                text.rfind("\n\n", start, end),
                text.rfind("\n", start + _MAX_BLOCK // 2, end),
            )
            end = max(*breaks, 0) + 1 if max(breaks) > start else end
        if match := _LONG_RUN.search(text, start, end):
            end = match.start() if match.start() > start else match.end()
        yield start, end
        start = end


def _middle(text: str) -> int:
    """Where to halve a text: at white space near its middle, if there is some."""
    half = len(text) // 2
    for at in (text.rfind("\n", 0, half), text.rfind(" ", 0, half)):
        if at > len(text) // 4:
            return at
    return max(1, half)
