"""Files of other programs to Markdown, with the places in them that a citation can name.

Runs in the child process of `Converter`; libraries are imported where they are needed, since most
files need one of them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from gem_rag.documents.tables import Places, table

_HIDDEN_TAGS = ("script", "style", "noscript", "template", "nav", "svg", "iframe", "form")
_SLIDE = re.compile(r"<!-- Slide number: (\d+) -->\n?")
_HEADERS = ("From", "To", "Cc", "Date")


class Converted(NamedTuple):
    """A converted file.

    Attributes:
        text: Markdown.
        title: The title recorded in the file, or nothing.
        places: (first character in the text, "page 3") of each page, slide, row or cell, in order.
    """

    text: str
    title: str
    places: Places


def _join(parts: Iterable[tuple[str, str]], title: str = "") -> Converted:
    """Texts under the names of their places, with empty lines between them."""
    text, places = "", cast(Places, [])
    for place, part in parts:
        if part.strip():
            text += "\n\n" if text else ""
            places.append((len(text), place))
            text += part.strip("\n")
    return Converted(text, title, places)


def _markitdown(extension: str, data: bytes, charset: str | None = None) -> tuple[str, str]:
    """Text and title."""
    from markitdown import MarkItDown, StreamInfo

    info = StreamInfo(extension=extension, charset=charset)
    result = MarkItDown(enable_plugins=False).convert_stream(io.BytesIO(data), stream_info=info)
    return result.text_content, result.title or ""


def _whole(extension: str, path: Path) -> Converted:
    return Converted(*_markitdown(extension, path.read_bytes()), [])


# -- pages and slides ----------------------------------------------------------------------------


def _pdf(path: Path) -> Converted:
    """Pages end with form feeds; where tables were found they do not, and each page is converted
    by itself."""
    import pypdfium2

    data = path.read_bytes()
    text, title = _markitdown(".pdf", data)
    with pypdfium2.PdfDocument(data) as document:
        count = len(document)
        if count == 1:
            pages = [text]
        elif text.count("\f") >= count - 1:
            pages = text.split("\f")
        else:
            pages = [_markitdown(".pdf", _page(document, number))[0] for number in range(count)]
    return _join(((f"page {n}", page) for n, page in enumerate(pages, start=1)), title)


def _page(document: Any, number: int) -> bytes:
    """A PDF file of one page of another."""
    import pypdfium2

    one, data = pypdfium2.PdfDocument.new(), io.BytesIO()
    one.import_pages(document, [number])
    one.save(data)
    one.close()
    return data.getvalue()


def _slides(path: Path) -> Converted:
    text, title = _markitdown(".pptx", path.read_bytes())
    _, *rest = _SLIDE.split(text)  # the slides' numbers and texts in turn
    return _join(
        ((f"slide {number}", body) for number, body in zip(rest[::2], rest[1::2], strict=True)),
        title,
    )


# -- tables and cells ----------------------------------------------------------------------------


def _spreadsheet(path: Path) -> Converted:
    from python_calamine import CalamineWorkbook

    text, places = "", cast(Places, [])
    with CalamineWorkbook.from_path(str(path)) as book:
        for name in book.sheet_names:
            sheet = book.get_sheet_by_name(name)
            first_row = 1 + (sheet.start or (0, 0))[0]  # what is empty before it is not read
            heading = f"{text and chr(10) * 2}## {name}\n\n"
            start = len(text) + len(heading)
            body, found = table(sheet.to_python(), f"{name}, ", start, first_row)
            if body:
                text += heading + body
                places += found
    return Converted(text, "", places)


def _notebook(path: Path) -> Converted:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    language = notebook.metadata.get("kernelspec", {}).get("language", "python")
    cells = enumerate(notebook.cells, start=1)
    return _join((f"cell {number}", _cell(cell, language)) for number, cell in cells)


def _cell(cell: Any, language: str) -> str:
    """A cell's source, and what it printed."""
    if cell.cell_type != "code":
        return str(cell.source)
    outputs = (_output(output) for output in cell.get("outputs", ()))
    fenced = [_fence(cell.source, language), *(_fence(text, "") for text in outputs if text)]
    return "\n\n".join(fenced)


def _output(output: Any) -> str:
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return ("".join(text) if isinstance(text, list) else str(text)).strip("\n")


def _fence(text: str, language: str) -> str:
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}" if text.strip() else ""


# -- pages of the web, and mail ------------------------------------------------------------------


def _html(path: Path) -> Converted:
    return Converted(*_html_text(path.read_bytes()), [])


def _html_text(data: bytes) -> tuple[str, str]:
    visible, title = _visible_html(data)
    text, recorded = _markitdown(".html", visible, "utf-8")
    return text, recorded or title


def _visible_html(data: bytes) -> tuple[bytes, str]:
    """The visible part of a page, and its title."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup(data, "lxml")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for element in page.find_all(_HIDDEN_TAGS):
        element.decompose()
    for element in page.find_all(_is_hidden):
        element.decompose()
    for link in page.find_all("a", href=lambda target: bool(target) and target.startswith("#")):
        words = link.get_text(strip=True)
        # "Skip to content", and the mark beside a heading that links to it: \u00b6, #, \u00a7.
        is_mark = not any(map(str.isalnum, words)) and link.find("img") is None
        if words.lower().startswith("skip ") or is_mark:
            link.decompose()
    main = page.find("main") or page.find(role="main")
    body = main if main and main.get_text(strip=True) else page.body or page
    html = f"<html><head><meta charset='utf-8'></head><body>{body}</body></html>"
    return html.encode("utf-8", "replace"), title


def _is_hidden(element: Any) -> bool:
    style = str(element.get("style") or "").replace(" ", "").lower()
    return (
        element.has_attr("hidden")
        or "display:none" in style
        or "visibility:hidden" in style
        or element.get("aria-hidden") == "true"
        or element.get("role") in ("navigation", "search")
    )


def _mail(path: Path) -> Converted:
    """Headers, the text, and the names of what is attached."""
    parser = BytesParser(EmailMessage, policy=policy.default)
    message = parser.parsebytes(path.read_bytes())
    headers = [f"- {name}: {message[name]}" for name in _HEADERS if message[name]]
    attached = [f"- Attachment: {part.get_filename()}" for part in message.iter_attachments()]
    parts = ["\n".join(headers), *_bodies(message), "\n".join(attached)]
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    return Converted(text, " ".join(str(message["Subject"] or "").split()), [])


def _bodies(message: EmailMessage) -> Iterator[str]:
    body = message.get_body(("plain", "html"))
    if body is None:
        return
    content = body.get_content()
    if body.get_content_subtype() == "html":
        content, _ = _html_text(content.encode("utf-8", "replace"))
    yield content


CONVERTERS: Mapping[str, Callable[[Path], Converted]] = {
    "pdf": _pdf,
    "docx": partial(_whole, ".docx"),
    "pptx": _slides,
    "spreadsheet": _spreadsheet,
    "notebook": _notebook,
    "epub": partial(_whole, ".epub"),
    "html": _html,
    "mail": _mail,
}
