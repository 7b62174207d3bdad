"""Sections of HTML documentation, as in Debian's documentation packages, converted to Markdown.

Excluded are pages that list or repeat: indexes, change logs, source listings, and generated
references, whose text is that of docstrings.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lxml.etree
import lxml.html
from bs4 import Tag
from markdownify import MarkdownConverter

_EXCLUDED_PAGES = re.compile(
    r"/(_modules|_sources|_static|generated|api_gen|gallery|auto_examples|whatsnew|changelogs?|"
    r"releases?|glossary|c-api|internals|reference/(api|source|generated))/|"
    r"/(genindex|py-modindex|modindex|search|contents|copyright|license|changes|changelog|history|"
    r"news|requirements|bookindex|whats-?new|release[^/]*|releaselog|download|toc|all|index-[^/]*)[^/]*\.html$",
    re.IGNORECASE,
)
_CONTENT_PATHS = ('.//*[@role="main"]', ".//main", ".//article", './/div[@class="body"]', ".//body")
_BOILERPLATE_TAGS = ("script", "style", "nav", "footer", "form", "img", "svg")
_BOILERPLATE_CLASSES = (
    "headerlink", "sphinxsidebar", "related", "navheader", "navfooter", "toctree-wrapper",
    "contents", "indextable", "linenos", "viewcode-link", "nosearch", "toc",
)  # fmt: skip
_BOILERPLATE = "|".join(
    [f".//{tag}" for tag in _BOILERPLATE_TAGS]
    + [f'.//*[contains(concat(" ", @class, " "), " {name} ")]' for name in _BOILERPLATE_CLASSES]
)
_INLINE_TAGS = ("a", "span", "em", "strong", "b", "i", "code", "tt", "cite", "var", "kbd", "samp")
_PARSER = lxml.html.HTMLParser(encoding="utf-8")
_HEADING = re.compile(r"^(#{1,6}) +(.+)$", re.MULTILINE)
_MODULE_ANCHOR = re.compile(r'id="module-([\w.]+)"')


@dataclass(frozen=True)
class Section:
    """The text under one heading of a page.

    Attributes:
        page: Path of the page, relative to its package's folder.
        title: Title of the page, and heading of the section.
        text: Markdown, without the heading.
        modules: Python modules that the page documents.
    """

    page: str
    title: tuple[str, str]
    text: str
    modules: frozenset[str]


def read_sections(folder: Path) -> Iterator[Section]:
    """Read the sections of every page below a folder, in order."""
    for file in sorted(folder.rglob("*.html")):
        path = file.relative_to(folder).as_posix()
        if not _EXCLUDED_PAGES.search(f"/{path}") and file.is_file():
            yield from parse_sections(path, file.read_text(encoding="utf-8", errors="replace"))


def parse_sections(path: str, html: str) -> Iterator[Section]:
    """Parse the sections of a page, which documents the module it is named after, too.

    Args:
        path: Path of the page.
        html: Its source.

    Yields:
        The sections that have text.
    """
    if not html.strip():
        return
    modules = frozenset({*_MODULE_ANCHOR.findall(html), Path(path).stem})
    document = lxml.html.fromstring(html.encode(), parser=_PARSER)
    # "shutil — High-level file operations — Python 3.11.2 documentation"
    title = " ".join(document.findtext(".//title", "").split())
    page_title = re.sub(r" ([|—–] [^|—–]*|- .* documentation)$", "", title)
    text = _convert_to_markdown(document)
    for heading, following in itertools.pairwise([*_HEADING.finditer(text), None]):
        assert heading is not None
        body = text[heading.end() : following.start() if following else None].strip()
        if body:
            yield Section(path, (page_title, heading[2].strip(" #")), body, modules)


def _convert_to_markdown(document: lxml.html.HtmlElement) -> str:
    """The content of a page, without navigation and other boilerplate."""
    matches = (document.xpath(path) for path in _CONTENT_PATHS)
    content = next((tags[0] for tags in matches if tags), document)
    for tag in content.xpath(_BOILERPLATE):
        tag.drop_tree()
    lxml.etree.strip_tags(content, *_INLINE_TAGS)
    text = _CONVERTER.convert(lxml.html.tostring(content, encoding="unicode"))
    text = re.sub(r"[ \t]+$", "", text.replace("\u00b6", "").replace("\u00a0", " "), flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text)


class _Converter(MarkdownConverter):
    """Markdown with indented code instead of fences, as in docstrings."""

    def convert_pre(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        lines = el.get_text().strip("\n").split("\n")
        return "\n\n" + "\n".join(f"    {line}".rstrip() for line in lines) + "\n\n"

    def convert_dt(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return "\n\n" + " ".join(el.get_text().split()) + "\n"

    def convert_dd(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        lines = text.strip().split("\n")
        return "\n".join(f"    {line}".rstrip() for line in lines) + "\n\n"


_CONVERTER = _Converter(
    heading_style="ATX",
    bullets="-",
    escape_asterisks=False,
    escape_underscores=False,
    escape_misc=False,
    bs4_options="lxml",
)
