"""Files and folders to documents: what may be indexed, and as what text.

Text, Markdown and reStructuredText are read as they are; Python files give one document for each
docstring; PDF, Word and HTML files are converted to Markdown. What cannot be read is reported, and
reading continues with the rest.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import io
import os
import re
import stat
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from gem_rag.documents.conversion import Converter
from gem_rag.documents.docstrings import docstrings
from gem_rag.documents.document import Document, PassedOver, Skipped
from gem_rag.documents.structure import front_matter_title
from gem_rag.errors import InputError

MAX_LINE_LENGTH = 1_000_000  # characters; longer lines are data, and would take hours to embed
MAX_TEXT_BYTES = 100_000_000  # bytes
_TITLE_LENGTH = 100  # characters
_TITLE_LINES = 20  # where a title is looked for
_REPEATED = 3  # a line that occurs this often is a running header
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CONVERTED = {".pdf": "pdf", ".docx": "docx", ".html": "html", ".htm": "html"}
INDEXED_SUFFIXES = (".txt", ".text", ".rst", ".md", ".markdown", ".py", *_CONVERTED)
_MAGIC = {"pdf": b"%PDF-", "docx": b"PK\x03\x04"}
_TITLE_MARKS = "#=*-~ \t\f"


class Reader(Protocol):
    """Reads one file as documents; raises InputError if it cannot."""

    def __call__(self, file: Path, source: str) -> Iterator[Document]: ...


SourceOf = Callable[[Path], str]
Lookup = Callable[[str], Document | None]


def read_paths(
    paths: Sequence[Path],
    base: Path,
    source_of: SourceOf | None = None,
    lookup: Lookup | None = None,
    exclude: Sequence[Path] = (),
) -> Iterator[Document | Skipped | PassedOver]:
    """Read files, and all readable files in folders, in order of name.

    Args:
        paths: Files and folders. Hidden files and folders inside folders are ignored.
        base: The folder that sources are relative to.
        source_of: Names the source of a file or folder instead.
        lookup: Finds a document that was read before, by its source; a file that needs conversion
            is not converted again if its bytes are the same.
        exclude: Folders that are not read, such as the index itself.

    Yields:
        `Document`s; `Skipped` for files and folders that cannot be read; finally `PassedOver`, the
        kinds of file that are not indexed, if there were any.

    Raises:
        InputError: A path is not there, or a file named outright cannot be read.
    """
    source_of = source_of or (lambda path: source_name(path, base))
    check_paths(paths)
    passed_over: Counter[str] = Counter()
    with Converter() as converter:
        readers = _make_readers(converter, lookup or (lambda source: None))
        for path in paths:
            if path.is_dir():
                for entry in _walk(path, readers, passed_over, exclude):
                    if isinstance(entry, Skipped):
                        yield Skipped(source_of(Path(entry.source)), entry.reason, entry.unreadable)
                    else:
                        yield from _read_or_skip(entry, source_of(entry), readers)
            elif path.suffix.lower() not in readers:
                raise InputError(
                    f"{path} is of no kind that can be indexed: use {', '.join(readers)}"
                )
            else:
                yield from _read(path, source_of(path), readers)
    if passed_over:
        yield PassedOver(dict(passed_over.most_common()))


def check_paths(paths: Sequence[Path]) -> None:
    """Raise InputError for a path that does not exist."""
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no file or folder {str(path)!r}: check the path")


def source_name(path: Path, base: Path) -> str:
    """The path relative to `base`, with forward slashes: the same from any working folder.

    Bytes of a name that are not UTF-8 are escaped.
    """
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(base))
    return os.fsencode(relative).decode("utf-8", "backslashreplace").replace(os.sep, "/")


# -- folders -------------------------------------------------------------------------------------


def _walk(
    folder: Path, readers: dict[str, Reader], passed_over: Counter[str], exclude: Sequence[Path]
) -> Iterator[Path | Skipped]:
    """Files of known kinds in a folder, and the folders in it that cannot be listed."""
    denied: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=denied.append):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not any(_is_same_folder(Path(root, name), e) for e in exclude)
        )
        for error in denied:
            yield _unreadable(Path(error.filename), error)
        denied.clear()
        for name in sorted(files):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in readers:
                yield Path(root, name)
            else:
                passed_over[suffix or "no suffix"] += 1
    for error in denied:
        yield _unreadable(Path(error.filename), error)


def _unreadable(path: Path, error: OSError) -> Skipped:
    reason = f"{path} cannot be read ({error.strerror}): check its permissions"
    return Skipped(str(path), reason, unreadable=True)


def _is_same_folder(path: Path, other: Path) -> bool:
    return path.name == other.name and other.exists() and path.samefile(other)


def _read_or_skip(
    file: Path, source: str, readers: dict[str, Reader]
) -> Iterator[Document | Skipped]:
    try:
        yield from _read(file, source, readers)
    except InputError as error:
        unreadable = isinstance(error.__cause__, OSError)
        yield Skipped(source, escape_surrogates(str(error)), unreadable)


def _read(file: Path, source: str, readers: dict[str, Reader]) -> list[Document]:
    try:
        _check_regular(file)
        documents = [
            dataclasses.replace(document, file=source)
            for document in readers[file.suffix.lower()](file, source)
        ]
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}): check its permissions"
        ) from error
    for document in documents:
        longest = max(map(len, document.text.split("\n")))
        if longest > MAX_LINE_LENGTH:
            raise InputError(
                f"{file} has a line of {longest:,} characters, which is data and not prose: break "
                f"its lines (at most {MAX_LINE_LENGTH:,}) or leave it out"
            )
    return documents


def _check_regular(file: Path) -> None:
    """Refuse anything but a regular file: reading a pipe blocks, and a device may never end."""
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode):
        raise InputError(f"{file} is a pipe, a device or a socket, not a file: leave it out")


def escape_surrogates(text: str) -> str:
    """Escape lone surrogates, which cannot be encoded."""
    return text.encode("utf-8", "backslashreplace").decode()


# -- plain text ----------------------------------------------------------------------------------


def read_text(file: Path) -> str:
    """Read a text file: UTF-8, or the encoding of its byte order mark.

    Raises:
        InputError: It is empty, binary, too large, or in another encoding.
    """
    if file.stat().st_size > MAX_TEXT_BYTES:
        raise InputError(f"{file} has over {MAX_TEXT_BYTES >> 20} MiB of text: split it")
    data = file.read_bytes()
    encoding = next((name for bom, name in _BOMS.items() if data.startswith(bom)), "utf-8")
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


def _read_plain(file: Path, source: str) -> Iterator[Document]:
    text = read_text(file)
    yield Document(source, text, find_title(text))


def _read_rst(file: Path, source: str) -> Iterator[Document]:
    text = read_text(file)
    yield Document(source, text, find_title(text), "rst")


def _read_markdown(file: Path, source: str) -> Iterator[Document]:
    text = read_text(file)
    yield Document(source, text, front_matter_title(text) or find_title(text), "markdown")


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


# -- Python --------------------------------------------------------------------------------------


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
        yield Document(name, escape_surrogates(f"{title}\n{doc.text}"), escape_surrogates(title))


def _python_source(file: Path) -> str:
    """A module's source, decoded as Python decodes it (PEP 263)."""
    data = file.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    if encoding.startswith("utf-8"):
        return read_text(file)
    return _clean(data.decode(encoding), file)


# -- converted formats ---------------------------------------------------------------------------


def _make_readers(converter: Converter, lookup: Lookup) -> dict[str, Reader]:
    """The reader of each kind of file, by suffix."""

    def read_converted(file: Path, source: str) -> Iterator[Document]:
        file_format = _CONVERTED[file.suffix.lower()]
        _check_format(file, file_format)
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        previous = lookup(source)
        if previous is not None and previous.digest == digest:
            yield previous
            return
        result = converter.convert(file, file_format)
        if not result.text.strip():
            raise InputError(
                f"{file} holds no text: leave it out, or run text recognition on it first"
            )
        title = result.title or find_title(result.text)
        yield Document(source, result.text, title, "markdown", digest)

    plain: dict[str, Reader] = {
        ".txt": _read_plain,
        ".text": _read_plain,
        ".rst": _read_rst,
        ".md": _read_markdown,
        ".markdown": _read_markdown,
        ".py": _read_python,
    }
    return plain | dict.fromkeys(_CONVERTED, read_converted)


def _check_format(file: Path, file_format: str) -> None:
    """Refuse a file whose content does not match its suffix."""
    with file.open("rb") as handle:
        head = handle.read(4096)
    magic = _MAGIC.get(file_format)
    if magic is not None and magic not in head[:1024]:
        raise InputError(
            f"{file} is not a {file_format.upper()} file, despite its name: rename it, or leave it "
            "out"
        )
    if magic is None and b"\0" in head and not head.startswith(tuple(_BOMS)):
        raise InputError(f"{file} is binary, despite its name: rename it, or leave it out")
