"""Headings, sections and tables of a document, from a parser of its format.

Markdown (and what converters write, which is Markdown) is parsed by markdown-it, reStructuredText
by docutils. Nothing inside code, quotes, lists or front matter is a heading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gem_rag.documents.document import Document

_LINE_END = re.compile(r"\r\n?|\n")
_RULE = re.compile(r"([=\-*~^\"'#+`:._])\1{2,}[ \t]*")
_MAX_PLAIN_HEADING = 100  # characters


@dataclass(frozen=True)
class Heading:
    """A heading.

    Attributes:
        start: The first character.
        stop: The character after the last one.
        level: 1 is the highest.
        text: Its words, without markup.
    """

    start: int
    stop: int
    level: int
    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        start: The first character.
        body: The first character after the header.
        stop: The character after the last one.
    """

    start: int
    body: int
    stop: int


@dataclass(frozen=True)
class Section:
    """A heading and the text under it.

    Attributes:
        start: The first character.
        body: The first character after the heading.
        stop: The character after the last one.
        path: The headings from the highest level down to the section's own.
    """

    start: int
    body: int
    stop: int
    path: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """The headings and tables of a text, in order."""

    headings: list[Heading]
    tables: list[Table]


def parse_structure(document: Document) -> Structure:
    """Parse the headings and tables of a document."""
    if document.kind == "markdown":
        return _parse_markdown(document.text)
    if document.kind == "rst":
        return Structure(_rst_headings(document.text), [])
    return Structure(list(_underlined_lines(document.text)), [])


def split_sections(document: Document, structure: Structure) -> list[Section]:
    """Split a document into its sections, in order; together they cover all of its text."""
    headings, length = structure.headings, len(document.text)
    first = headings[0].start if headings else length
    sections = [Section(0, 0, first, ())] if first else []
    path: list[Heading] = []
    for number, heading in enumerate(headings):
        while path and path[-1].level >= heading.level:
            path.pop()
        path.append(heading)
        stop = headings[number + 1].start if number + 1 < len(headings) else length
        names = tuple(parent.text for parent in path if parent.text)
        sections.append(Section(heading.start, heading.stop, stop, names))
    return sections


class _Lines:
    """Character offsets of a text's lines."""

    def __init__(self, text: str) -> None:
        self.starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        self._length = len(text)

    def start(self, line: int) -> int:
        """The first character of a line, or the end of the text."""
        return self.starts[line] if line < len(self.starts) else self._length


# -- Markdown ------------------------------------------------------------------------------------


def _parse_markdown(text: str) -> Structure:
    lines = _Lines(text)
    headings, tables = [], []
    tokens = _markdown_parser().parse(text)
    for number, token in enumerate(tokens):
        if token.level or token.map is None:
            continue
        start, stop = (lines.start(line) for line in token.map)
        if token.type == "heading_open":  # an inline token with its words comes next
            words = _inline_text(tokens[number + 1])
            headings.append(Heading(start, stop, int(token.tag[1:]), words))
        elif token.type == "table_open":
            tables.append(Table(start, lines.start(token.map[0] + 2), stop))
    return Structure(headings, tables)


def _markdown_parser() -> Any:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.front_matter import front_matter_plugin

    return MarkdownIt("commonmark").enable("table").use(front_matter_plugin)


def front_matter_title(text: str) -> str:
    """The title in a Markdown text's front matter, or nothing."""
    tokens = _markdown_parser().parse(text[:10_000]) if text.startswith("---") else []
    for token in tokens[:1]:
        if token.type == "front_matter":
            match = re.search(r"^title:[ \t]*(.+)$", token.content, re.MULTILINE)
            return match[1].strip().strip("\"'") if match else ""
    return ""


def _inline_text(token: Any) -> str:
    """The words of a heading, without markup, link targets and images."""
    parts = [
        " " if child.type in ("softbreak", "hardbreak") else child.content
        for child in token.children or ()
        if child.type in ("text", "code_inline", "softbreak", "hardbreak", "html_inline")
    ]
    return " ".join(re.sub(r"<[^>]*>", "", "".join(parts)).split())


# -- reStructuredText and plain text -------------------------------------------------------------


def _rst_headings(text: str) -> list[Heading]:
    """Section titles as docutils reads them, located at their underlined lines."""
    titles = _rst_titles(text)
    lines = text.split("\n")
    starts = _Lines(text.replace("\r", " ")).starts
    headings: list[Heading] = []
    line = 0
    for level, title in titles:
        for number in range(line, len(lines) - 1):
            underlined = _RULE.fullmatch(lines[number + 1]) and lines[number].strip() == title
            if underlined:
                over = number and lines[number - 1] and _RULE.fullmatch(lines[number - 1])
                first = number - 1 if over and number > line else number
                stop = starts[number + 2] if number + 2 < len(starts) else len(text)
                headings.append(Heading(starts[first], stop, level, " ".join(title.split())))
                line = number + 2
                break
    return headings


def _rst_titles(text: str) -> list[tuple[int, str]]:
    """(level, source of the title) of all sections, in order."""
    from docutils import nodes
    from docutils.core import publish_doctree

    settings = {
        "report_level": 5,
        "halt_level": 5,
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "doctitle_xform": False,
        "sectsubtitle_xform": False,
        "warning_stream": False,
        "line_length_limit": 10_000_000,
        "_disable_config": True,
    }
    try:
        tree = publish_doctree(text, settings_overrides=settings)
    except Exception:  # docutils raises many kinds for text that is not reStructuredText
        return []

    def level_of(node: Any) -> int:
        level = 0
        while node is not None:
            level += isinstance(node, nodes.section)
            node = node.parent
        return level

    return [
        (level_of(section), section.next_node(nodes.title).rawsource)
        for section in tree.findall(nodes.section)
        if section.next_node(nodes.title) is not None
    ]


def _underlined_lines(text: str) -> Iterator[Heading]:
    """Lines of plain text that are set off by a blank line and underlined to their length."""
    lines = _Lines(text)
    rows = _LINE_END.split(text)
    for number in range(len(rows) - 1):
        title, rule = rows[number].rstrip(), rows[number + 1].rstrip()
        if not title[:1].strip() or not any(map(str.isalnum, title)):
            continue
        if number and rows[number - 1].strip():
            continue
        if (
            len(title) <= _MAX_PLAIN_HEADING
            and _RULE.fullmatch(rule)
            and abs(len(rule) - len(title)) <= 2
        ):
            level = 1 if rule[0] == "=" else 2
            yield Heading(lines.start(number), lines.start(number + 2), level, title.strip())
