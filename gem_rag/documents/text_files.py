"""Files that hold text as it is: prose, markup, Python, other source code, and tables."""

from __future__ import annotations

import codecs
import csv
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from gem_rag.documents.docstrings import docstrings
from gem_rag.documents.document import Document
from gem_rag.documents.structure import front_matter_title
from gem_rag.documents.tables import table
from gem_rag.errors import InputError

MAX_TEXT_BYTES = 100_000_000  # bytes
_TITLE_LENGTH = 100  # characters
_TITLE_LINES = 20  # where a title is looked for
_REPEATED = 3  # a line that occurs this often is a running header
_TITLE_MARKS = "#=*-~ \t\f"
_SNIFFED = 65_536  # characters that show how the cells of a table are separated
_MAX_CELL = 10_000_000  # characters
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CODE = (
    ".c", ".cc", ".cpp", ".cs", ".go", ".h", ".hpp", ".java", ".jl", ".js", ".jsx", ".kt", ".lua",
    ".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts", ".tsx",
)  # fmt: skip


class Reader(Protocol):
    """Reads one file as documents; raises InputError if it cannot."""

    def __call__(self, file: Path, source: str) -> Iterator[Document]: ...


def read_text(file: Path) -> str:
    """Read a text file: UTF-8, or the encoding of its byte order mark.

    Raises:
        InputError: It is empty, binary, too large, or in another encoding.
    """
    if file.stat().st_size > MAX_TEXT_BYTES:
        raise InputError(f"{file} has over {MAX_TEXT_BYTES >> 20} MiB of text: split it")
    data = file.read_bytes()
    encoding = next((name for bom, name in BOMS.items() if data.startswith(bom)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        raise InputError(
            f"{file} is binary (it has null bytes): leave it out, or convert it to text"
        )
    try:
        return _clean(data.decode(encoding), file)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not {encoding.upper().removesuffix('-SIG')} (byte {error.start}): convert "
            "it, for example with 'iconv -f latin1 -t utf-8'"
        ) from None


def _clean(text: str, file: Path) -> str:
    if not text.strip():
        raise InputError(f"{file} is empty: there is nothing to index")
    return escape_surrogates(text.replace("\r\n", "\n"))


def escape_surrogates(text: str) -> str:
    """Escape lone surrogates, which cannot be encoded."""
    return text.encode("utf-8", "backslashreplace").decode()


def find_title(text: str) -> str:
    """Find a title for a text.

    Args:
        text: The text.

    Returns:
        The first line with words that is not repeated on every page (as running headers are),
        without heading marks; empty if there is none, or if it is too long for a title.
    """
    lines = [line.strip(_TITLE_MARKS) for line in text.split("\n")]
    lines = [line for line in lines if any(map(str.isalnum, line))]
    counts = Counter(re.sub(r"\d+", "0", line) for line in lines)
    for line in lines[:_TITLE_LINES]:
        if counts[re.sub(r"\d+", "0", line)] < _REPEATED:
            return line if len(line) <= _TITLE_LENGTH else ""
    return ""


# -- readers -------------------------------------------------------------------------------------


def _read_plain(file: Path, source: str) -> Iterator[Document]:
    text = read_text(file)
    yield Document(source, text, find_title(text))


def _read_rst(file: Path, source: str) -> Iterator[Document]:
    text = read_text(file)
    yield Document(source, text, find_title(text), "rst")


def _read_markdown(file: Path, source: str) -> Iterator[Document]:
    text = read_text(file)
    yield Document(source, text, front_matter_title(text) or find_title(text), "markdown")


def _read_named(file: Path, source: str) -> Iterator[Document]:
    """Source code and data, whose first line is no title."""
    yield Document(source, read_text(file), escape_surrogates(file.name))


def _read_table(file: Path, source: str) -> Iterator[Document]:
    text = read_text(file)
    separator = "\t" if file.suffix.lower() == ".tsv" else _separator(text)
    csv.field_size_limit(_MAX_CELL)
    try:
        rows, places = table(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{file} is no table that can be read ({error}): save it again") from None
    title = escape_surrogates(file.name)
    yield Document(source, rows, title, "markdown", places=tuple(places))


def _separator(text: str) -> str:
    try:
        return csv.Sniffer().sniff(text[:_SNIFFED], ",;\t|").delimiter
    except csv.Error:  # a single column, or cells of prose
        return ","


def _read_python(file: Path, source: str) -> Iterator[Document]:
    try:
        definitions = list(docstrings(_python_source(file)))
    except (SyntaxError, ValueError, RecursionError, MemoryError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error) or "it is nested too deeply"
        raise InputError(f"{file} is not Python that can be parsed: {reason}") from None
    seen: Counter[str] = Counter()
    for doc in definitions:
        title = f"# {'.'.join(filter(None, (file.stem, doc.name)))}{doc.signature}"
        name = f"{source}#{doc.name}" if doc.name else source
        seen[name] += 1
        if seen[name] > 1:  # overloads and conditional definitions share a name
            name += f"@{seen[name]}"
        text, title = escape_surrogates(f"{title}\n{doc.text}"), escape_surrogates(title)
        yield Document(name, text, title, places=((0, f"line {doc.line}"),))


def _python_source(file: Path) -> str:
    """A module's source, decoded as Python decodes it (PEP 263)."""
    data = file.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    if encoding.startswith("utf-8"):
        return read_text(file)
    return _clean(data.decode(encoding), file)


READERS: Mapping[str, Reader] = {
    ".txt": _read_plain,
    ".text": _read_plain,
    ".rst": _read_rst,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".adoc": _read_plain,
    ".org": _read_plain,
    ".tex": _read_plain,
    ".py": _read_python,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".json": _read_named,
    ".jsonl": _read_named,
    **dict.fromkeys(_CODE, _read_named),
}
