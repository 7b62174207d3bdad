"""Headings come from parsers of each format, and sections are all of a text."""

from __future__ import annotations

import pytest

from gem_rag.documents.document import Document, Kind
from gem_rag.documents.structure import front_matter_title, parse_structure, split_sections

NO_HEADINGS = {
    "a comment in a fence": "```\n# comment\n```\n",
    "indented code": "Text.\n\n    # comment\n",
    "a quote": "> # quoted\n",
    "a list": "- # listed\n",
    "front matter": "---\ntitle: Rules\ndraft: false\n---\n\nText.\n",
    "a hash without a space": "#hashtag\n",
    "a rule": "Text.\n\n---\n\nMore.\n",
}


def headings(text: str, kind: Kind) -> list[tuple[int, str]]:
    structure = parse_structure(Document("s", text, kind=kind))
    return [(heading.level, heading.text) for heading in structure.headings]


def paths(text: str, kind: Kind) -> list[tuple[str, ...]]:
    document = Document("s", text, kind=kind)
    return [section.path for section in split_sections(document, parse_structure(document))]


@pytest.mark.parametrize("text", NO_HEADINGS.values(), ids=NO_HEADINGS)
def test_what_is_no_heading_in_markdown(text: str) -> None:
    assert headings(text, "markdown") == []


def test_markdown_headings_have_their_words_and_level() -> None:
    text = "# One `code` and *more*\n\nTwo\n---\n\n### [Three](https://x.org) ###\n"
    assert headings(text, "markdown") == [(1, "One code and more"), (2, "Two"), (3, "Three")]


def test_the_path_leads_from_the_highest_heading_down() -> None:
    text = "# Install\n\n## Windows\n\n### Steps\n\na\n\n## Linux\n\n### Steps\n\nb\n"
    assert paths(text, "markdown") == [
        ("Install",),
        ("Install", "Windows"),
        ("Install", "Windows", "Steps"),
        ("Install", "Linux"),
        ("Install", "Linux", "Steps"),
    ]


def test_restructured_text_is_read_by_docutils() -> None:
    text = (
        "=====\nGuide\n=====\n\nSetup\n-----\n\nText::\n\n   Not\n   ---\n\n"
        "Use\n---\n\n.. code::\n\n   Nor this\n   ========\n"
    )
    assert headings(text, "rst") == [(1, "Guide"), (2, "Setup"), (2, "Use")]
    assert paths(text, "rst")[-1] == ("Guide", "Use")


def test_in_plain_text_only_a_line_underlined_to_its_length_is_a_heading() -> None:
    ruled = (
        "How long is it? Two years, and a sentence that goes on.\n-------\n\nName\n====\n\nText."
    )
    assert headings(ruled, "text") == [(1, "Name")]


@pytest.mark.parametrize("kind", ["markdown", "rst", "text"])
def test_sections_are_all_of_the_text(kind: Kind) -> None:
    text = "Before.\n\n# A\n\nB\n=\n\ntext\r\n\n## C\n"
    document = Document("s", text, kind=kind)
    sections = split_sections(document, parse_structure(document))
    assert "".join(text[section.start : section.stop] for section in sections) == text
    assert all(s.start <= s.body <= s.stop for s in sections)


def test_a_table_knows_its_header() -> None:
    text = "Text.\n\n| Part | Price |\n|---|---|\n| pump | 11 |\n| lamp | 22 |\n"
    (table,) = parse_structure(Document("s", text, kind="markdown")).tables
    assert text[table.start : table.body] == "| Part | Price |\n|---|---|\n"
    assert text[table.body : table.stop].startswith("| pump")


def test_front_matter_has_a_title() -> None:
    assert front_matter_title('---\ntitle: "Holiday rules"\n---\n\nText.') == "Holiday rules"
    assert front_matter_title("Text.\n\n---\ntitle: no\n---\n") == ""
