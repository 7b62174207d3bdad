"""A batch of texts with special tokens as plain numpy arrays.

A `Row` is one text, the spans its special tokens see, and in training a suffix. A `Layout` arranges
rows in a rectangle, and records what the attention rule needs to know of every position
(`TokenFacts`). The rule itself is in `attention.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from gem_rag.core.arrays import IntArray
from gem_rag.errors import InputError

Arrangement = Literal["aligned", "right"]


class Role:
    """What is at a position, as plain integers for arrays."""

    TEXT = 0
    SPECIAL = 1
    SUFFIX = 2
    PAD = 3


class TokenFacts(NamedTuple):
    """What decides which tokens attend to which; integer arrays of one shape.

    Attributes:
        column: Index in the sequence.
        role: A `Role`.
        position: Position id; for a text token its index in its text.
        start: For a special token, the first position of the text that it sees.
        stop: And the first position after that span.
    """

    column: Any
    role: Any
    position: Any
    start: Any
    stop: Any


@dataclass(frozen=True)
class Row:
    """One text with its special tokens (paper section 3).

    Attributes:
        text: Token ids of the text (the paper's prefix).
        spans: [start, stop) tokens of the text, with a group of k special tokens for each. A group
            whose span ends before the text does is an observer: its positions continue its span,
            and no text token sees it.
        suffix: Token ids that see the special tokens and never the text (training).

    Raises:
        InputError: A span is not a non-empty part of the text, or a suffix has not exactly one.
    """

    text: Sequence[int]
    spans: tuple[tuple[int, int], ...]
    suffix: Sequence[int] = ()

    def __post_init__(self) -> None:
        for start, stop in self.spans:
            if not 0 <= start < stop <= len(self.text):
                raise InputError(
                    f"span ({start}, {stop}) is not a non-empty part of a text of "
                    f"{len(self.text)} tokens"
                )
        if len(self.suffix) and len(self.spans) != 1:
            raise InputError("a row with a suffix has exactly one span, which the suffix reads")

    @classmethod
    def whole(cls, text: Sequence[int], suffix: Sequence[int] = ()) -> Row:
        """A row whose special tokens see all of the text."""
        return cls(text, ((0, len(text)),), suffix)

    def length(self, k: int) -> int:
        """Positions the row takes."""
        return len(self.text) + k * len(self.spans) + len(self.suffix)


@dataclass(frozen=True)
class Layout:
    """Rows arranged in a [B, T] rectangle.

    Attributes:
        ids: int64 [B, T]: the id of a text or suffix token, the index 0..k-1 of a special token in
            its group, 0 for padding.
        tokens: What the attention rule needs to know; int64 [B, T] each.
        k: Special tokens in a group.
        rest_start: In the arrangement "aligned", the first column after the block of texts: texts
            are in columns [0, rest_start), everything else behind them. Otherwise None.
    """

    ids: IntArray
    tokens: TokenFacts
    k: int
    rest_start: int | None

    @classmethod
    def build(cls, rows: Sequence[Row], k: int, arrangement: Arrangement = "aligned") -> Layout:
        """Arrange rows.

        Args:
            rows: At least one.
            k: Special tokens in a group.
            arrangement: "aligned" pads texts on the right and puts special tokens in common columns
                behind them, which needs no T x T mask; "right" pads whole rows.
        """
        if not rows:
            raise InputError("a layout needs at least one row")
        if arrangement not in get_args(Arrangement):
            raise InputError(f"rows are arranged aligned or right, not {arrangement}")
        if arrangement == "aligned" and all(map(_is_plain, rows)):
            return _align_plain(rows, k)
        bodies = [_row_columns(row, k) for row in rows]
        if arrangement == "aligned":
            texts = [body[:, : len(row.text)] for body, row in zip(bodies, rows, strict=True)]
            rests = [body[:, len(row.text) :] for body, row in zip(bodies, rows, strict=True)]
            width = max(text.shape[1] for text in texts)
            blocks = zip(_pad(texts), _pad(rests), strict=True)
            joined = [np.concatenate(pair, axis=1) for pair in blocks]
            return _assemble(joined, k, width)
        return _assemble(_pad(bodies), k, None)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def stacked(self) -> IntArray:
        """The ids and all facts in one array: int64 [6, B, T]."""
        return np.stack([self.ids, *self.tokens])

    @property
    def specials(self) -> tuple[IntArray, IntArray]:
        """Rows and columns of all special tokens, group after group: by row, then span, k each."""
        rows, columns = np.nonzero(self.tokens.role == Role.SPECIAL)
        return rows, columns


def _is_plain(row: Row) -> bool:
    """Whether a row has one group of special tokens, which see all of it, and no suffix."""
    return row.spans == ((0, len(row.text)),) and not row.suffix


def _align_plain(rows: Sequence[Row], k: int) -> Layout:
    """The "aligned" layout of plain rows, all at once: thousands of short texts take longer to
    arrange one by one than to embed."""
    lengths = np.fromiter((len(row.text) for row in rows), np.int64, len(rows))
    width = int(lengths.max())
    shape = len(rows), width + k
    column = np.broadcast_to(np.arange(shape[1]), shape)
    is_text, is_special = column < lengths[:, None], column >= width
    flat = itertools.chain.from_iterable(row.text for row in rows)
    ids = np.zeros(shape, np.int64)
    ids[is_text] = np.fromiter(flat, np.int64, lengths.sum())
    slot = column - width
    ids[is_special] = slot[is_special]
    return Layout(
        ids,
        TokenFacts(
            column,
            np.where(is_special, Role.SPECIAL, np.where(is_text, Role.TEXT, Role.PAD)),
            np.where(is_special, lengths[:, None] + slot, np.where(is_text, column, 0)),
            np.zeros(shape, np.int64),
            np.where(is_special, lengths[:, None], 0),
        ),
        k,
        width,
    )


_FIELDS = 5  # ids, role, position, start, stop


def _row_columns(row: Row, k: int) -> IntArray:
    """The row's text, groups of special tokens and suffix, one after another: [5, length]."""
    n, groups, m = len(row.text), len(row.spans), len(row.suffix)
    spans = np.repeat(np.asarray(row.spans, dtype=np.int64).reshape(-1, 2), k, axis=0)
    slot = np.tile(np.arange(k), groups)
    role = np.repeat([Role.TEXT, Role.SPECIAL, Role.SUFFIX], [n, groups * k, m])
    out = np.zeros((_FIELDS, row.length(k)), dtype=np.int64)
    out[0] = np.concatenate(
        [np.asarray(row.text, np.int64), slot, np.asarray(row.suffix, np.int64)]
    )
    out[1] = role
    out[2] = np.concatenate([np.arange(n), spans[:, 1] + slot, np.arange(n + k, n + k + m)])
    out[3, role == Role.SPECIAL] = spans[:, 0]
    out[4, role == Role.SPECIAL] = spans[:, 1]
    return out


def _pad(bodies: Sequence[IntArray]) -> list[IntArray]:
    width = max(body.shape[1] for body in bodies)
    padded = []
    for body in bodies:
        out = np.zeros((_FIELDS, width), dtype=np.int64)
        out[1] = Role.PAD
        out[:, : body.shape[1]] = body
        padded.append(out)
    return padded


def _assemble(bodies: Sequence[IntArray], k: int, rest_start: int | None) -> Layout:
    ids, role, position, start, stop = np.stack(bodies, axis=1)
    column = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return Layout(ids, TokenFacts(column, role, position, start, stop), k, rest_start)


def plan_batches(lengths: Sequence[int], budget: int, padding: float = 1.0) -> Iterator[list[int]]:
    """Group rows of similar length into batches, longest first.

    Longest first, so that running out of memory shows at once and not after an hour.

    Args:
        lengths: Of the rows.
        budget: The most positions in a batch, which is a rectangle as wide as its longest row. A
            row longer than the budget is a batch of its own.
        padding: The largest share of a batch that may be padding.

    Yields:
        Indices of the rows in each batch.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch:
            positions = (len(batch) + 1) * lengths[batch[0]]
            if positions > budget or tokens + lengths[index] < (1 - padding) * positions:
                yield batch
                batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def group_to_fit(
    layouts: Sequence[Layout], budget: int, size: Callable[[Layout], int] = lambda one: one.ids.size
) -> Iterator[list[Layout]]:
    """Consecutive layouts that together have at most `budget` positions; a larger one alone.

    Args:
        layouts: Batches.
        budget: The most that a group may hold.
        size: What one of them counts for, if not for its positions.
    """
    group: list[Layout] = []
    held = 0
    for layout in layouts:
        if group and held + size(layout) > budget:
            yield group
            group, held = [], 0
        group.append(layout)
        held += size(layout)
    if group:
        yield group


def vector_places(rows: Sequence[Row], batches: Sequence[Sequence[int]]) -> IntArray:
    """Where the vectors of rows in their own order are among those of batches of them.

    Args:
        rows: All rows.
        batches: Indices of the rows in each batch; every row is in one.

    Returns:
        An index for each span, row after row.
    """
    counts = np.array([len(row.spans) for row in rows])
    first = np.cumsum(counts) - counts
    # Of the batches' vectors, which of the rows' each one is; its inverse is wanted.
    order = itertools.chain.from_iterable(batches)
    taken = np.concatenate([np.arange(first[i], first[i] + counts[i]) for i in order])
    return np.argsort(taken)
