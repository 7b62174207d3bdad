"""Files and folders to documents: what may be indexed, and as what text.

Text, markup and source code are read as they are; Python files give one document for each
docstring; files of other programs are converted to Markdown. What cannot be read is reported, and
reading continues with the rest.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gem_rag.documents.conversion import Converter
from gem_rag.documents.document import Document, LeftOut, Skipped
from gem_rag.documents.selection import Selection
from gem_rag.documents.text_files import BOMS, READERS, Reader, escape_surrogates, find_title
from gem_rag.errors import InputError

MAX_LINE_LENGTH = 1_000_000  # characters; longer lines are data, and would take hours to embed
_CONVERSION = "2"  # counts up when the same file is converted to another text
_CONVERTED = {
    ".pdf": "pdf",
    ".docx": "docx",
    ".pptx": "pptx",
    ".xlsx": "spreadsheet",
    ".xls": "spreadsheet",
    ".ods": "spreadsheet",
    ".ipynb": "notebook",
    ".epub": "epub",
    ".eml": "mail",
    ".html": "html",
    ".htm": "html",
}
KINDS = frozenset({*READERS, *_CONVERTED})  # suffixes of files that can be indexed
_ZIP = b"PK\x03\x04"
_MAGIC = {"pdf": b"%PDF-", "docx": _ZIP, "pptx": _ZIP, "epub": _ZIP}
_TEXT_FORMATS = ("html", "notebook", "mail")

SourceOf = Callable[[Path], str]
Lookup = Callable[[str], Document | None]
_EVERYTHING = Selection()


def read_paths(
    paths: Sequence[Path],
    base: Path,
    source_of: SourceOf | None = None,
    lookup: Lookup | None = None,
    selection: Selection = _EVERYTHING,
) -> Iterator[Document | Skipped | LeftOut]:
    """Read files, and the files in folders that can be read, in order of name.

    Args:
        paths: Files, which are read whatever they are called, and folders.
        base: The folder that sources are relative to.
        source_of: Names the source of a file or folder instead.
        lookup: Finds a document that was read before, by its source; a file that needs conversion
            is not converted again if its bytes are the same.
        selection: Which files of the folders are read.

    Yields:
        `Document`s; `Skipped` for files and folders that cannot be read; finally `LeftOut`, what
        the folders have besides, if there is anything.

    Raises:
        InputError: A path is not there, or a file named outright cannot be read.
    """
    source_of = source_of or (lambda path: source_name(path, base))
    check_paths(paths)
    left_out = LeftOut()
    with Converter() as converter:
        readers = _make_readers(converter, lookup or (lambda source: None))
        for path in paths:
            if path.is_dir():
                for entry in selection.files(path, readers, left_out):
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
    if left_out:
        yield left_out


def count_files(paths: Sequence[Path], selection: Selection = _EVERYTHING) -> int:
    """How many files `read_paths` will read."""
    return sum(
        sum(isinstance(entry, Path) for entry in selection.files(path, KINDS, LeftOut()))
        if path.is_dir()
        else 1
        for path in paths
    )


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
        modified = _utc(_check_regular(file).st_mtime)
        facts = {"type": file.suffix.lower().removeprefix("."), "modified": modified}
        documents = [
            dataclasses.replace(document, file=source, metadata={**document.metadata, **facts})
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


def _utc(time: float) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_regular(file: Path) -> os.stat_result:
    """Refuse anything but a regular file: reading a pipe blocks, and a device may never end."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{file} is a pipe, a device or a socket, not a file: leave it out")
    return status


# -- converted formats ---------------------------------------------------------------------------


def _make_readers(converter: Converter, lookup: Lookup) -> dict[str, Reader]:
    """The reader of each kind of file, by suffix."""

    def read_converted(file: Path, source: str) -> Iterator[Document]:
        file_format = _CONVERTED[file.suffix.lower()]
        _check_format(file, file_format)
        with file.open("rb") as handle:
            digest = f"{_CONVERSION}:{hashlib.file_digest(handle, 'sha256').hexdigest()}"
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
        yield Document(source, result.text, title, "markdown", digest, places=result.places)

    return {**READERS, **dict.fromkeys(_CONVERTED, read_converted)}


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
    if file_format in _TEXT_FORMATS and b"\0" in head and not head.startswith(tuple(BOMS)):
        raise InputError(f"{file} is binary, despite its name: rename it, or leave it out")
