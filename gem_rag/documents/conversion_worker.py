"""The child process of `Converter`: python -m gem_rag.documents.conversion_worker

Reads one JSON object per line, {"path": ..., "format": "pdf" | "docx" | "html"}, and writes one,
{"text": ..., "title": ...} or {"error": ...}. A memory limit protects the machine from files that
grow without bound when they are unpacked.
"""

from __future__ import annotations

import io
import json
import resource
import sys
from pathlib import Path
from typing import Any

MEMORY_LIMIT = 2 << 30  # bytes of address space
_MAX_CHARACTERS = 50_000_000  # characters
_HIDDEN_TAGS = ("script", "style", "noscript", "template", "nav", "svg", "iframe", "form")


def main() -> None:
    """Serve requests on standard input until it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    responses = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    for line in sys.stdin:
        request = json.loads(line)
        response = _respond(request["path"], request["format"])
        print(json.dumps(response), file=responses, flush=True)


def _respond(path: str, file_format: str) -> dict[str, Any]:
    try:
        text, title = _convert(Path(path), file_format)
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_LIMIT >> 30} GiB of memory to be converted"}
    except Exception as error:  # converters raise whatever their libraries do
        return {"error": _reason(error)}
    if len(text) > _MAX_CHARACTERS:
        return {"error": f"it unpacks to {len(text):,} characters, which is data and not prose"}
    # Lone surrogates cannot be encoded.
    return {"text": text.encode("utf-8", "replace").decode(), "title": title or ""}


def _convert(path: Path, file_format: str) -> tuple[str, str | None]:
    from markitdown import MarkItDown, StreamInfo

    converter = MarkItDown(enable_plugins=False)
    data = path.read_bytes()
    title = None
    if file_format == "html":
        data, title = _visible_html(data)
    info = StreamInfo(extension=f".{file_format}", charset="utf-8" if title is not None else None)
    result = converter.convert_stream(io.BytesIO(data), stream_info=info)
    return result.text_content, result.title or title


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


def _reason(error: Exception) -> str:
    """Why a conversion failed; markitdown hides the cause among its attempts."""
    attempts = getattr(error, "attempts", None) or ()
    cause = next((attempt.exc_info[1] for attempt in attempts if attempt.exc_info), error)
    names = {cls.__name__ for cls in type(cause).__mro__}
    if names & {"PDFPasswordIncorrect", "PDFEncryptionError"}:
        return "it is protected by a password: save it without one"
    if names & {"BadZipFile", "PSEOF", "PDFSyntaxError", "PSException", "PDFException"}:
        return "it is damaged or cut off: save it again"
    if "MemoryError" in names:
        return f"it needs more than {MEMORY_LIMIT >> 30} GiB of memory to be converted"
    text = " ".join(str(cause).split())[:200]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


if __name__ == "__main__":
    main()
