"""Texts to the rows that GEM's next-token objectives train on (paper section 4).

A row says what stands where; `targets` says which token each place must predict. Special tokens
are never targets, every other token is.

Knows nothing about models, losses or where texts come from.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from gem_rag.core.arrays import IntArray
from gem_rag.core.layout import Layout, Role, Row

IGNORED = -100  # the label that torch's cross entropy leaves out


def raw(text: Sequence[int]) -> Row:
    """Plain language modelling: no special tokens."""
    return Row(text, ())


def random_split(text: Sequence[int], rng: random.Random) -> Row:
    """The special tokens at a random place: what follows sees the beginning through them only.

    Raises ValueError for a text of fewer than two tokens.
    """
    cut = rng.randrange(1, len(text))
    return Row.whole(text[:cut], text[cut:])


def reconstruction(text: Sequence[int]) -> Row:
    """The text, the special tokens, and the same text again, to be told from them."""
    return Row.whole(text, text)


def mixed(text: Sequence[int], rng: random.Random, p_raw: float, p_split: float = 0.5) -> Row:
    """A row of the paper's mixed objective.

    p_raw: probability that the text stays raw (the paper's p).
    p_split: of the others, how many are split at random; the rest are reconstructed.
    """
    if len(text) < 2 or rng.random() < p_raw:
        return raw(text)
    return random_split(text, rng) if rng.random() < p_split else reconstruction(text)


def fitted(row: Row, k: int, places: int) -> Row:
    """The row, text and suffix cut short where it would take more places than the model has."""
    if row.length(k) <= places:
        return row
    room = places - k
    suffix = row.suffix[: max(room // 2, room - len(row.text))]
    return Row.whole(row.text[: room - len(suffix)], suffix)


def drop_tokens(text: Sequence[int], rng: random.Random, rate: float) -> list[int]:
    """The positive of the contrastive objective: the text without some of its tokens.

    At least one token stays.
    """
    kept = [token for token in text if rng.random() >= rate]
    return kept or [text[rng.randrange(len(text))]]


def targets(layout: Layout) -> IntArray:
    """What each place predicts: a token id, or -100 for nothing; the layout's shape.

    A text token predicts the next of its text, a suffix token the next of its suffix, and the
    last special token the first of the suffix.
    """
    labels = np.full_like(layout.ids, IGNORED)
    tokens = layout.tokens
    for row in range(layout.shape[0]):
        for segment in np.unique(tokens.segment[row]):
            here = tokens.segment[row] == segment
            text = np.flatnonzero(here & (tokens.role[row] == Role.TEXT))
            labels[row, text[:-1]] = layout.ids[row, text[1:]]
            suffix = np.flatnonzero(here & (tokens.role[row] == Role.SUFFIX))
            if suffix.size:
                last = np.flatnonzero(here & (tokens.role[row] == Role.SPECIAL))[-1]
                before = np.concatenate([[last], suffix[:-1]])
                labels[row, before] = layout.ids[row, suffix]
    return labels
