"""Pairs of a docstring's summary line and the rest of it, which the summary should retrieve."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gem_rag.documents.docstrings import Docstring
from gem_tiny.files import read_jsonl, write_jsonl
from gem_tiny.texts import read_docstrings

_MIN_SUMMARY_CHARACTERS = 15


@dataclass(frozen=True)
class DocstringPair:
    """A docstring split in two.

    Attributes:
        module: Dotted name of the module.
        name: Dotted name inside the module; empty for the module itself.
        signature: As written; empty where there is none.
        summary: The first paragraph on one line.
        rest: What follows it.
    """

    module: str
    name: str
    signature: str
    summary: str
    rest: str


def split_summary(text: str, min_letters: int = 40) -> tuple[str, str] | None:
    """Split a docstring into its summary, on one line, and the rest.

    Args:
        text: The docstring.
        min_letters: The fewest letters and digits of the rest.

    Returns:
        Both parts, or None if one of them is too short.
    """
    head, _, rest = text.partition("\n\n")
    summary, rest = " ".join(head.split()), rest.strip()
    if len(summary) < _MIN_SUMMARY_CHARACTERS or len(re.sub(r"\W", "", rest)) < min_letters:
        return None
    return summary, rest


def deduplication_keys(query: str, document: str) -> set[str]:
    """What two pairs must not share: either would be a false negative of the other."""
    return {query.lower(), " ".join(document.split()).lower()[:200]}


def extract_docstring_pairs(
    corpus: Iterable[tuple[str, Docstring]], min_letters: int = 40
) -> Iterator[DocstringPair]:
    """Split all docstrings whose two parts are long enough, without duplicates.

    Args:
        corpus: Modules and docstrings, as `read_docstrings` yields them.
        min_letters: As in `split_summary`.

    Yields:
        The pairs.
    """
    seen: set[str] = set()
    for module, doc in corpus:
        parts = split_summary(doc.text, min_letters)
        if parts is None:
            continue
        keys = deduplication_keys(*parts)
        if seen.isdisjoint(keys):
            seen |= keys
            yield DocstringPair(module, doc.name, doc.signature, *parts)


def load_docstring_pairs(cache: Path, packages: Path | None) -> list[DocstringPair]:
    """Load the pairs from a file, which is written first if it does not exist.

    Args:
        cache: A JSON Lines file. Parsing every module takes a minute, reading it a moment.
        packages: A folder of installed packages, in addition to the standard library.

    Returns:
        The pairs.
    """
    if not cache.exists():
        pairs = extract_docstring_pairs(read_docstrings([packages] if packages else []))
        write_jsonl(cache, map(asdict, pairs))
    return [DocstringPair(**row) for row in read_jsonl(cache)]
