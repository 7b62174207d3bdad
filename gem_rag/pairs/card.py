"""What was made, and of what: a card for a file of pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from gem_rag.pairs.pair import Pair

_SAMPLES = 20
_SOURCES = 20  # that are listed by name
_EXCERPT = 160  # characters


@dataclass(frozen=True)
class Made:
    """What `make_pairs` made.

    Attributes:
        file: Name of the file.
        pairs: How many pairs.
        kinds: How many of each kind.
        sources: How many of each document.
        dropped: How many each filter took away.
        negatives: How many pairs have so many negatives.
        model: Name of the model.
        fingerprint: The model's.
        settings: `PairSettings` as plain values.
    """

    file: str
    pairs: int
    kinds: Mapping[str, int]
    sources: Mapping[str, int]
    dropped: Mapping[str, int]
    negatives: Mapping[int, int]
    model: str
    fingerprint: str
    settings: Mapping[str, Any]

    def summary(self) -> str:
        """One line for a terminal."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        dropped = ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count)
        return f"{self.pairs} pairs in {self.file} ({kinds})" + (
            dropped and f"; left out: {dropped}"
        )


def card(made: Made, pairs: Sequence[Pair], file: Path) -> str:
    """The card in Markdown.

    Args:
        made: What was made.
        pairs: The pairs.
        file: Where they are.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    largest = sorted(made.sources.items(), key=lambda item: -item[1])
    more = len(largest) - _SOURCES
    samples = Random(0).sample(list(pairs), min(_SAMPLES, len(pairs)))
    return "\n".join(
        [
            f"# {made.file}",
            "",
            f"{made.pairs} pairs of a query and the passage that answers it, made from "
            f"{len(made.sources)} documents with {made.model} by `gem-rag make-pairs`.",
            "",
            *_table("kind", made.kinds),
            *_table("left out, since it", made.dropped),
            *_table("negatives", made.negatives),
            *_table("document", dict(largest[:_SOURCES])),
            *([f"and {more} documents more", ""] if more > 0 else []),
            "## Samples, drawn at random",
            "",
            "| kind | query | document |",
            "|---|---|---|",
            *(f"| {p.kind} | {_cell(p.query)} | {_cell(p.document)} |" for p in samples),
            "",
            "## Settings",
            "",
            f"- sha256 of the file: {digest}",
            f"- fingerprint of the model: {made.fingerprint}",
            "",
            "```json",
            json.dumps(made.settings, indent=2),
            "```",
            "",
        ]
    )


def _table(name: str, counts: Mapping[Any, int]) -> list[str]:
    rows = [f"| {_cell(str(key))} | {count} |" for key, count in counts.items()]
    return [f"| {name} | pairs |", "|---|---|", *rows, ""] if rows else []


def _cell(text: str) -> str:
    """A text's beginning in one cell of a table."""
    words = " ".join(text.split()).replace("|", "\\|")
    return words if len(words) <= _EXCERPT else words[:_EXCERPT] + " ..."
