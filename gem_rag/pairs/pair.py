"""`Pair`: a query and the passage that answers it; and files of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gem_rag._utils.files import write_atomically
from gem_rag.errors import InputError


@dataclass(frozen=True)
class Pair:
    """A line of a file of pairs, which data of kind "pairs" reads.

    Attributes:
        query: What is asked.
        document: The text that answers it.
        kind: Where the query is from: "title", "heading", "summary", or a kind of question.
        source: Name of the document that the text is of.
        section: Name of its section.
        negatives: Texts that look right and are not.
        context: What precedes the text in its document, for models that read chunks in context.
    """

    query: str
    document: str
    kind: str
    source: str
    section: str
    negatives: tuple[str, ...] = ()
    context: str = ""

    def row(self) -> dict[str, Any]:
        """The columns of its line; without a context where there is none."""
        return {name: value for name, value in vars(self).items() if name != "context" or value}


def write_pairs(file: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as JSON lines, all or none."""
    lines = (json.dumps(pair.row(), ensure_ascii=False) + "\n" for pair in pairs)
    write_atomically(file, "".join(lines))


def read_pairs(file: Path) -> list[Pair]:
    """Read a file that `write_pairs` wrote; raises InputError naming a line that is not like it."""
    if not file.is_file():
        raise InputError(f"there is no file {file}: give one that make-pairs wrote")
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            pairs.append(Pair(**{**row, "negatives": tuple(row["negatives"])}))
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}, line {number}: make-pairs did not write this") from None
    if not pairs:
        raise InputError(f"{file} holds no pairs")
    return pairs
