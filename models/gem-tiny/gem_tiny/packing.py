"""Texts and rows packed into sequences of tokens, and the batch that each training step reads.

Documents are concatenated, those of a module or page together, and split wherever a sequence ends.
Rows, which are longer, are kept whole and padded. Every sequence has one token more than the model
reads, so that the last token it reads has a target.
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

from gem_tiny.files import replace_file

Tokens = npt.NDArray[np.uint16]
Weights = npt.NDArray[np.uint8]

_MAX_OPEN_SEQUENCES = 64  # that rows are still added to


@dataclass(frozen=True)
class PackedSequences:
    """Sequences of tokens with loss weights.

    Attributes:
        tokens: Token ids, uint16 [n, length + 1].
        weights: Weight of each token in the loss as a target, uint8 [n, length + 1].
    """

    tokens: Tokens
    weights: Weights

    @property
    def length(self) -> int:
        """Tokens of each sequence that the model reads."""
        return int(self.tokens.shape[1]) - 1

    def save(self, path: Path) -> None:
        """Write to an .npz file."""
        with replace_file(path) as temporary:
            np.savez(temporary, tokens=self.tokens, weights=self.weights)

    @classmethod
    def load(cls, path: Path) -> PackedSequences:
        """Read an .npz file written by `save`."""
        with np.load(path) as arrays:
            return cls(arrays["tokens"], arrays["weights"])

    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the data."""
        digest = hashlib.sha256(self.tokens.tobytes())
        digest.update(self.weights.tobytes())
        return digest.hexdigest()[:16]


def pack_documents(documents: Iterable[Sequence[int]], length: int, eos: int) -> PackedSequences:
    """Concatenate documents and split the stream into sequences.

    Args:
        documents: Token ids of each document.
        length: Tokens of a sequence that the model reads.
        eos: Token that ends a document.

    Returns:
        The sequences; all weights are 1.
    """
    stream = np.fromiter((i for ids in documents for i in (*ids, eos)), dtype=np.uint16)
    count = (len(stream) - 1) // length
    positions = np.arange(count)[:, None] * length + np.arange(length + 1)
    return PackedSequences(stream[positions], np.ones((count, length + 1), dtype=np.uint8))


def pack_rows(
    rows: Iterable[tuple[Sequence[int], Sequence[int]]],
    length: int,
    eos: int,
    pad: int,
    answer_weight: int,
) -> PackedSequences:
    """Pack whole rows, several to a sequence, by best fit.

    Args:
        rows: Token ids of each prompt and its answer. Rows that are too long are dropped.
        length: Tokens of a sequence that the model reads.
        eos: Token that ends an answer.
        pad: Token that fills a sequence; its weight is 0.
        answer_weight: Weight of an answer's tokens. Those of a prompt have weight 1: prompts are
            text to learn from like any other.

    Returns:
        The sequences.
    """
    sequences: list[tuple[list[int], list[int]]] = []
    open_sequences: list[tuple[list[int], list[int]]] = []
    for prompt, answer in rows:
        ids = [*prompt, *answer, eos]
        if len(ids) > length + 1:
            continue
        fitting = (s for s in open_sequences if len(s[0]) + len(ids) <= length + 1)
        sequence = max(fitting, key=lambda s: len(s[0]), default=None)
        if sequence is None:
            sequence = ([], [])
            sequences.append(sequence)
            by_length = sorted([*open_sequences, sequence], key=lambda s: len(s[0]))
            open_sequences = by_length[:_MAX_OPEN_SEQUENCES]
        tokens, weights = sequence
        tokens += ids
        weights += [1] * len(prompt) + [answer_weight] * (len(answer) + 1)
    shape = (len(sequences), length + 1)
    packed = PackedSequences(np.full(shape, pad, np.uint16), np.zeros(shape, np.uint8))
    for number, (tokens, weights) in enumerate(sequences):
        packed.tokens[number, : len(tokens)] = tokens
        packed.weights[number, : len(weights)] = weights
    return packed


@dataclass(frozen=True)
class DataMixture:
    """A mixture of documents and rows, each of which is read once an epoch.

    A step's batch depends on the step and the seed only.

    Attributes:
        documents: Sequences of documents.
        rows: Sequences of rows.
        seed: Seed of the order in each epoch.
        batch: Tokens of a step.
        row_share: Share of rows in a batch before the decay of the learning rate.
        decay_row_share: Share of rows from then on.
    """

    documents: PackedSequences
    rows: PackedSequences
    seed: int
    batch: int
    row_share: float
    decay_row_share: float

    def batch_at(self, step: int, decay_start: int) -> list[tuple[npt.NDArray[np.int64], Weights]]:
        """The batch of a step.

        Args:
            step: The step, from 0.
            decay_start: The first step of the decay.

        Returns:
            Tokens and weights [count, length + 1] of the rows, and of the documents.
        """
        steps_before, steps_after = min(step, decay_start), max(0, step - decay_start)
        batch = []
        for name, source, before, after in (
            ("rows", self.rows, self.row_share, self.decay_row_share),
            ("documents", self.documents, 1 - self.row_share, 1 - self.decay_row_share),
        ):
            count_before, count_after = (
                round(self.batch * share / source.length) for share in (before, after)
            )
            first = count_before * steps_before + count_after * steps_after
            count = count_before if step < decay_start else count_after
            tokens, weights = _select(source, f"{self.seed} {name}", first, count)
            batch.append((tokens.astype(np.int64), weights))
        return batch

    def settings(self) -> dict[str, Any]:
        """Everything that determines the batches."""
        return {
            "documents": self.documents.fingerprint(),
            "rows": self.rows.fingerprint(),
            "seed": self.seed,
            "batch": self.batch,
            "row_share": self.row_share,
            "decay_row_share": self.decay_row_share,
        }


def _select(source: PackedSequences, key: str, first: int, count: int) -> tuple[Tokens, Weights]:
    """Sequences `first` to `first + count` of a stream that shuffles the source in every epoch."""
    total = len(source.tokens)
    indices = [_permutation(key, n // total, total)[n % total] for n in range(first, first + count)]
    return source.tokens[indices], source.weights[indices]


@lru_cache(maxsize=4)
def _permutation(key: str, epoch: int, count: int) -> npt.NDArray[np.int64]:
    digest = hashlib.sha256(f"{key} {epoch}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8])).permutation(count)
