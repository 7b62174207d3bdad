"""Documents to chunks of at most so many tokens, along the text's own structure.

Knows nothing about vectors or indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from gem_rag.documents.document import Chunk, Document

# "## Heading" of Markdown, or a line and its underline of reStructuredText.
_HEADING = re.compile(
    r"^(?:#{1,6} +(?P<marked>\S.*)|(?P<underlined>\S.*)\n([=\-*~^\"'#+`])\3{2,}[ \t]*)$",
    re.MULTILINE,
)


class Splitter:
    """Splits documents by tokens of one tokenizer (a `tokenizers.Tokenizer`).

    size: most tokens in a passage, its title included.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer = tokenizer
        self._size = size

    def spans(self, document: Document) -> list[tuple[int, int]]:
        """[start, stop) of every chunk in the document's text, in order; bare headings are none."""
        headings = headings_of(document)
        titles = [_title(document, heading) for _, _, heading in headings] or [document.title]
        longest = max(len(ids.ids) for ids in self._tokenizer.encode_batch(titles)) + 1
        make = MarkdownSplitter if document.kind == "markdown" else TextSplitter
        capacity = max(self._size - longest, self._size // 2)
        splitter = make.from_huggingface_tokenizer(self._tokenizer, capacity)
        bare = {document.text[start:stop].strip() for start, stop, _ in headings}
        return [
            (start, start + len(text))
            for start, text in splitter.chunk_indices(document.text)
            if text.strip() not in bare and any(c.isalnum() for c in text)
        ]


def chunks(document: Document, spans: Sequence[tuple[int, int]]) -> Iterator[Chunk]:
    """The chunks of a document at spans that are in order."""
    headings = headings_of(document)
    above = ""
    for start, stop in spans:
        while headings and headings[0][0] < start:
            above = headings.pop(0)[2]
        text = document.text[start:stop]
        yield Chunk(document.source, _title(document, above, text), start, stop, text)


def headings_of(document: Document) -> list[tuple[int, int, str]]:
    """(start, stop, words) of every heading in the text."""
    found = _HEADING.finditer(document.text)
    return [(m.start(), m.end(), (m["marked"] or m["underlined"]).strip()) for m in found]


def _title(document: Document, heading: str, text: str = "") -> str:
    """Title and heading, without what the text itself begins with."""
    parts = dict.fromkeys(part[:100] for part in (document.title, heading) if part)
    return " > ".join(part for part in parts if part not in text[: len(part) + 10])
