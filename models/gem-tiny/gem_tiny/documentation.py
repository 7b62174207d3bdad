"""Sections of HTML documentation, as packages of Debian carry it, as Markdown.

Pages that only list or repeat (indexes, change logs, source listings, generated references, whose
text is that of docstrings) are left out.

Knows nothing about what is held out or about models.
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

_LEFT_OUT = re.compile(
    r"/(_modules|_sources|_static|generated|api_gen|gallery|auto_examples|whatsnew|changelogs?|"
    r"releases?|glossary|c-api|internals|reference/(api|source|generated))/|"
    r"/(genindex|py-modindex|modindex|search|contents|copyright|license|changes|changelog|history|"
    r"news|requirements|bookindex|whats-?new|release[^/]*|releaselog|download|toc|all|index-[^/]*)[^/]*\.html$",
    re.IGNORECASE,
)
_CONTENT = ('.//*[@role="main"]', ".//main", ".//article", './/div[@class="body"]', ".//body")
_CLASSES = ("headerlink", "sphinxsidebar", "related", "navheader", "navfooter", "toctree-wrapper",
            "contents", "indextable", "linenos", "viewcode-link", "nosearch", "toc")  # fmt: skip
_NOISE = "|".join(
    [f".//{tag}" for tag in ("script", "style", "nav", "footer", "form", "img", "svg")]
    + [f'.//*[contains(concat(" ", @class, " "), " {name} ")]' for name in _CLASSES]
)
# Within lines, marks say nothing to a reader of plain text.
_PLAIN = ("a", "span", "em", "strong", "b", "i", "code", "tt", "cite", "var", "kbd", "samp")
_PARSER = lxml.html.HTMLParser(encoding="utf-8")
_HEADING = re.compile(r"^(#{1,6}) +(.+)$", re.MULTILINE)
_MODULE_ANCHOR = re.compile(r'id="module-([\w.]+)"')


@dataclass(frozen=True)
class Section:
    """What stands under one heading of a page.

    page: the page's path.
    title: the page's title, and the section's own.
    text: Markdown, without the heading.
    modules: the Python modules that the page says it documents.
    """

    page: str
    title: tuple[str, str]
    text: str
    modules: frozenset[str]


def sections(folder: Path) -> Iterator[Section]:
    """The sections of every page below a folder, in order."""
    for file in sorted(folder.rglob("*.html")):
        path = file.relative_to(folder).as_posix()
        if not _LEFT_OUT.search(f"/{path}") and file.is_file():
            yield from sections_of(path, file.read_text(encoding="utf-8", errors="replace"))


def sections_of(path: str, html: str) -> Iterator[Section]:
    """The sections of one page. A library page also documents the module it is named after."""
    if not html.strip():
        return
    modules = frozenset({*_MODULE_ANCHOR.findall(html), Path(path).stem})
    document = lxml.html.fromstring(html.encode(), parser=_PARSER)
    # "shutil — High-level file operations — Python 3.11.2 documentation"
    title = " ".join(document.findtext(".//title", "").split())
    page = re.sub(r" ([|—–] [^|—–]*|- .* documentation)$", "", title)
    text = _markdown(document)
    for heading, following in itertools.pairwise([*_HEADING.finditer(text), None]):
        assert heading is not None
        body = text[heading.end() : following.start() if following else None].strip()
        if body:
            yield Section(path, (page, heading[2].strip(" #")), body, modules)


def _markdown(document: lxml.html.HtmlElement) -> str:
    """The page's own content, without what stands around it on every page."""
    found = (document.xpath(path) for path in _CONTENT)
    content = next((tags[0] for tags in found if tags), document)
    for tag in content.xpath(_NOISE):
        tag.drop_tree()
    lxml.etree.strip_tags(content, *_PLAIN)
    text = _CONVERTER.convert(lxml.html.tostring(content, encoding="unicode"))
    text = re.sub(r"[ \t]+$", "", text.replace("\u00b6", "").replace("\u00a0", " "), flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text)


class _Converter(MarkdownConverter):
    """Markdown without fences and links: code is indented, as in docstrings."""

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
