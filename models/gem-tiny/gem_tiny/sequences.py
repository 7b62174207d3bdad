"""Texts and rows as sequences, and which of them each step reads.

Documents follow one another, a module's or page's together, and are cut wherever a sequence
ends. Rows, which are longer, are kept whole and padded. Every sequence is one token longer than
what the model reads, so that its last token has a target.

A step's batch is a function of the seed and the step alone.

Knows nothing about models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16]
Weights = npt.NDArray[np.uint8]

_UNFILLED = 64  # sequences that the next row may still go to


@dataclass(frozen=True)
class Sequences:
    """tokens [n, length + 1], and how much each counts as a target."""

    tokens: Tokens
    weights: Weights

    @property
    def length(self) -> int:
        """Tokens that the model reads of each."""
        return int(self.tokens.shape[1]) - 1

    def save(self, file: Path) -> None:
        """Write to an .npz file, there when it is whole."""
        part = file.with_suffix(".part.npz")
        np.savez(part, tokens=self.tokens, weights=self.weights)
        part.rename(file)

    @staticmethod
    def load(file: Path) -> Sequences:
        with np.load(file) as arrays:
            return Sequences(arrays["tokens"], arrays["weights"])

    def hash(self) -> str:
        """16 hexadecimal digits that name the data."""
        digest = hashlib.sha256(self.tokens.tobytes())
        digest.update(self.weights.tobytes())
        return digest.hexdigest()[:16]


def documents(texts: Iterable[Sequence[int]], length: int, end: int) -> Sequences:
    """Token ids of documents, each followed by `end`, as one stream cut in sequences."""
    stream = np.fromiter((i for ids in texts for i in (*ids, end)), dtype=np.uint16)
    count = (len(stream) - 1) // length
    places = np.arange(count)[:, None] * length + np.arange(length + 1)
    return Sequences(stream[places], np.ones((count, length + 1), dtype=np.uint8))


def rows(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
    length: int,
    end: int,
    pad: int,
    weight: int,
) -> Sequences:
    """Whole (prompt, answer) rows, several to a sequence; an answer's tokens count `weight`.

    Prompts count as well, once: they are text like any other. Rows that are too long are left
    out.
    """
    sequences: list[tuple[list[int], list[int]]] = []
    unfilled: list[tuple[list[int], list[int]]] = []
    for prompt, answer in pairs:
        ids = [*prompt, *answer, end]
        if len(ids) > length + 1:
            continue
        fitting = (s for s in unfilled if len(s[0]) + len(ids) <= length + 1)
        place = max(fitting, key=lambda s: len(s[0]), default=None)
        if place is None:
            place = ([], [])
            sequences.append(place)
            unfilled = sorted([*unfilled, place], key=lambda s: len(s[0]))[:_UNFILLED]
        tokens, counts = place
        tokens += ids
        counts += [1] * len(prompt) + [weight] * (len(answer) + 1)
    shape = (len(sequences), length + 1)
    found = Sequences(np.full(shape, pad, np.uint16), np.zeros(shape, np.uint8))
    for number, (tokens, counts) in enumerate(sequences):
        found.tokens[number, : len(tokens)] = tokens
        found.weights[number, : len(counts)] = counts
    return found


@dataclass(frozen=True)
class Mixture:
    """Which sequences of documents and of rows each step reads, every one once an epoch.

    batch: tokens a step.
    row_share, decay_row_share: rows' part of a batch, before and from step `decay_from`.
    """

    documents: Sequences
    rows: Sequences
    seed: int
    batch: int
    row_share: float
    decay_row_share: float

    def at(self, step: int, decay_from: int) -> list[tuple[npt.NDArray[np.int64], Weights]]:
        """(tokens, weights) [count, length + 1] of a step: of rows, and of documents."""
        late, early = max(0, step - decay_from), min(step, decay_from)
        share = self.row_share if step < decay_from else self.decay_row_share
        found = []
        for name, source, before, after, now in (
            ("rows", self.rows, self.row_share, self.decay_row_share, share),
            ("documents", self.documents, 1 - self.row_share, 1 - self.decay_row_share, 1 - share),
        ):
            few, many, count = (round(self.batch * s / source.length) for s in (before, after, now))
            first = few * early + many * late
            tokens, weights = _taken(source, f"{self.seed} {name}", first, count)
            found.append((tokens.astype(np.int64), weights))
        return found

    def settings(self) -> dict[str, Any]:
        """What decides the batches."""
        return {
            "documents": self.documents.hash(),
            "rows": self.rows.hash(),
            "seed": self.seed,
            "batch": self.batch,
            "row_share": self.row_share,
            "decay_row_share": self.decay_row_share,
        }


def _taken(source: Sequences, key: str, first: int, count: int) -> tuple[Tokens, Weights]:
    """`count` sequences from the `first`, of an order that is another one in every epoch."""
    total = len(source.tokens)
    places = [_shuffled(key, n // total, total)[n % total] for n in range(first, first + count)]
    return source.tokens[places], source.weights[places]


@lru_cache(maxsize=4)
def _shuffled(key: str, epoch: int, count: int) -> npt.NDArray[np.int64]:
    digest = hashlib.sha256(f"{key} {epoch}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8])).permutation(count)
