"""Texts to the rows that GEM's next-token objectives train on (paper section 4).

`next_token_labels` says which token each position of a layout must predict. Special tokens are
never predicted, every other token is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from gem_rag.core.arrays import IntArray
from gem_rag.core.layout import Layout, Role, Row

IGNORED = -100  # the label that torch's cross entropy ignores


def raw_row(text: Sequence[int]) -> Row:
    """Plain language modelling: no special tokens."""
    return Row(text, ())


def random_split_row(text: Sequence[int], rng: random.Random) -> Row:
    """Special tokens at a random place: what follows sees the beginning only through them.

    Raises:
        ValueError: The text has fewer than two tokens.
    """
    cut = rng.randrange(1, len(text))
    return Row.whole(text[:cut], text[cut:])


def reconstruction_row(text: Sequence[int]) -> Row:
    """The text, the special tokens, and the same text again, to be reconstructed from them."""
    return Row.whole(text, text)


def mixed_row(text: Sequence[int], rng: random.Random, p_raw: float, p_split: float = 0.5) -> Row:
    """A row of the paper's mixed objective.

    Args:
        text: Token ids.
        rng: Source of randomness.
        p_raw: Probability that the text stays raw (the paper's p).
        p_split: Probability that one of the others is split at random; the rest is reconstructed.
    """
    if len(text) < 2 or rng.random() < p_raw:
        return raw_row(text)
    if rng.random() < p_split:
        return random_split_row(text, rng)
    return reconstruction_row(text)


def shorten_to_fit(row: Row, k: int, max_positions: int) -> Row:
    """Truncate a row's text and suffix if they take more positions than the model has."""
    if row.length(k) <= max_positions:
        return row
    room = max_positions - k
    suffix = row.suffix[: max(room // 2, room - len(row.text))]
    return Row.whole(row.text[: room - len(suffix)], suffix)


def drop_tokens(text: Sequence[int], rng: random.Random, rate: float) -> list[int]:
    """Drop a random share of a text's tokens, but not all: the positive of the contrastive loss."""
    kept = [token for token in text if rng.random() >= rate]
    return kept or [text[rng.randrange(len(text))]]


def next_token_labels(layout: Layout) -> IntArray:
    """What each position predicts: a token id, or -100 for nothing; int64 of the layout's shape.

    A text token predicts the next one of its text, a suffix token the next one of its suffix, and
    the last special token the first one of the suffix.
    """
    labels = np.full_like(layout.ids, IGNORED)
    tokens = layout.tokens
    for row in range(layout.shape[0]):
        text = np.flatnonzero(tokens.role[row] == Role.TEXT)
        labels[row, text[:-1]] = layout.ids[row, text[1:]]
        suffix = np.flatnonzero(tokens.role[row] == Role.SUFFIX)
        if suffix.size:
            last_special = np.flatnonzero(tokens.role[row] == Role.SPECIAL)[-1]
            labels[row, [last_special, *suffix[:-1]]] = layout.ids[row, suffix]
    return labels
