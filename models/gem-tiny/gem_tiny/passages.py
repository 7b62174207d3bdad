"""Passages of texts, by characters, as an index had them when gem-tiny was trained.

Training rows must not change when indexes are split in another way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from gem_tiny.texts import Text

_MAX_TITLE_PART = 100  # characters
# "## Heading" of Markdown, or a line and its underline of reStructuredText.
_HEADING = re.compile(
    r"^(?:#{1,6} +(?P<marked>\S.*)|(?P<underlined>\S.*)\n([=\-*~^\"'#+`])\3{2,}[ \t]*)$",
    re.MULTILINE,
)


def split_passages(text: Text, size: int) -> list[str]:
    """Split a text into passages, each below the text's title and its heading.

    Args:
        text: The text.
        size: The most characters of a passage, without its title.

    Returns:
        The passages; the whole text with its title if it fits.
    """
    if len(text.document) <= size:
        return [text.document]
    if text.kind == "docstring":
        return list(_split(text.title, text.document, TextSplitter(size)))
    return list(_split(text.title, text.text, MarkdownSplitter(size)))


def _split(title: str, text: str, splitter: TextSplitter | MarkdownSplitter) -> Iterator[str]:
    headings = [
        (match.start(), (match["marked"] or match["underlined"]).strip())
        for match in _HEADING.finditer(text)
    ]
    heading = ""
    for start, chunk in splitter.chunk_indices(text):
        while headings and headings[0][0] < start:
            heading = headings.pop(0)[1]
        passage_title = _join_title(title, heading, chunk)
        yield f"{passage_title}\n{chunk}" if passage_title else chunk


def _join_title(title: str, heading: str, text: str) -> str:
    """Title and heading, without what the text itself begins with."""
    parts = dict.fromkeys(part[:_MAX_TITLE_PART] for part in (title, heading) if part)
    return " > ".join(part for part in parts if part not in text[: len(part) + 10])
