"""Files and folders to documents: what may be indexed, and as what text.

Text, Markdown and reStructuredText are read as they are; Python files give one document for each
docstring; PDF, Word and HTML go through markitdown where it is installed.

Knows nothing about chunks, vectors or indexes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gem_rag.documents.docstrings import docstrings
from gem_rag.documents.document import Document, Skipped
from gem_rag.errors import InputError

LONGEST_LINE = 1_000_000  # characters; more is data, and would take hours to embed


def read_paths(paths: Sequence[Path], base: Path) -> Iterator[Document | Skipped]:
    """Documents of files and of all readable files in folders, in order of name.

    base: folder that sources are given relative to. Hidden files and folders, and files of
    unknown kinds inside folders, are passed over.

    Raises InputError for a path that is not there, and for a file named outright that cannot
    be read; files found in folders that cannot be read are yielded as `Skipped`.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no file or folder {str(path)!r}: check the path")
    for path in paths:
        if path.is_dir():
            for file in _files(path):
                yield from _read_or_skip(file, source_name(file, base))
        elif path.suffix.lower() not in _READERS:
            raise InputError(f"{path} is of no kind that can be indexed: use {', '.join(_READERS)}")
        else:
            yield from _read(path, source_name(path, base))


def source_name(path: Path, base: Path) -> str:
    """The path relative to `base`, with forward slashes: the same from any working folder."""
    return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in _READERS:
                yield Path(root, name)


def _read_or_skip(file: Path, source: str) -> Iterator[Document | Skipped]:
    try:
        yield from _read(file, source)
    except InputError as error:
        yield Skipped(source, str(error))


def _read(file: Path, source: str) -> list[Document]:
    try:
        documents = list(_READERS[file.suffix.lower()](file, source))
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}): check its permissions"
        ) from None
    for document in documents:
        longest = max(map(len, document.text.split("\n")))
        if longest > LONGEST_LINE:
            raise InputError(
                f"{file} has a line of {longest:,} characters, which is data and not prose: break "
                f"its lines (at most {LONGEST_LINE:,}) or leave it out"
            )
    return documents


def _plain(file: Path) -> str:
    """The file's text. Raises InputError if it is empty, binary or not UTF-8."""
    data = file.read_bytes()
    if b"\0" in data:
        raise InputError(
            f"{file} is binary (it has null bytes): leave it out, or convert it to text"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 (byte {error.start}): convert it, for example with "
            "'iconv -f latin1 -t utf-8'"
        ) from None
    if not text.strip():
        raise InputError(f"{file} is empty: there is nothing to index")
    return text.replace("\r\n", "\n")


def _read_text(file: Path, source: str) -> Iterator[Document]:
    text = _plain(file)
    yield Document(source, text, _title(text))


def _read_markdown(file: Path, source: str) -> Iterator[Document]:
    text = _plain(file)
    yield Document(source, text, _title(text), "markdown")


def _read_python(file: Path, source: str) -> Iterator[Document]:
    try:
        found = list(docstrings(_plain(file)))
    except (SyntaxError, RecursionError) as error:
        raise InputError(f"{file} is not Python that can be parsed: {error}") from None
    seen: dict[str, int] = {}
    for doc in found:
        title = f"# {'.'.join(filter(None, (file.stem, doc.name)))}{doc.signature}"
        name = f"{source}#{doc.name}" if doc.name else source
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:  # overloads and conditional definitions share a name
            name += f"@{seen[name]}"
        yield Document(name, f"{title}\n{doc.text}", title)


def _read_converted(file: Path, source: str) -> Iterator[Document]:
    try:
        import markitdown
    except ImportError:
        raise InputError(f"{file} needs a converter: pip install 'gem-rag[files]'") from None
    try:
        text = markitdown.MarkItDown(enable_plugins=False).convert_local(str(file)).text_content
    except Exception as error:  # converters raise whatever their libraries do
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{file} cannot be converted ({reason}): save it again, or leave it out"
        ) from None
    if not text.strip():
        raise InputError(f"{file} holds no text: leave it out, or run text recognition on it first")
    yield Document(source, text, _title(text), "markdown")


def _title(text: str) -> str:
    """The first line that says something, without heading marks."""
    for line in text.split("\n", 50)[:50]:
        line = line.strip("#=*-~ \t")
        if any(c.isalnum() for c in line):
            return line[:100]
    return ""


_READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".rst": _read_text,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".py": _read_python,
    ".pdf": _read_converted,
    ".docx": _read_converted,
    ".html": _read_converted,
    ".htm": _read_converted,
}
