"""How long texts are read: truncated, in windows, or one window around spans of a document.

Plain functions of token counts and offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from gem_rag.core.layout import Row
from gem_rag.errors import InputError

if TYPE_CHECKING:
    import tokenizers

Truncation = Literal["truncate", "windows", "error"]
BETWEEN = "\n\n"  # passages that are read one after another


def prefix_length(encoding: tokenizers.Encoding, prompt: str) -> int:
    """How many tokens precede the text itself: BOS and the prompt."""
    return next(
        (i for i, (_, end) in enumerate(encoding.offsets) if end > len(prompt)), len(encoding.ids)
    )


def truncate_or_split(
    encoding: tokenizers.Encoding, prompt: str, max_length: int, truncation: Truncation
) -> list[list[int]]:
    """The token rows that a text is embedded from.

    Args:
        encoding: The prompt and the text, tokenized together.
        prompt: The prompt.
        max_length: The most tokens in a row.
        truncation: What happens to a longer text.

    Returns:
        Token ids of each row: the text itself, its beginning, or windows that cover it. What
        precedes the text (BOS, the prompt) precedes every window.

    Raises:
        InputError: The text is too long under "error", or what precedes it leaves no room.
    """
    ids = encoding.ids
    if len(ids) <= max_length:
        return [ids]
    if truncation == "error":
        raise InputError(
            f"a text has {len(ids)} tokens and the model reads {max_length}: shorten it, or choose "
            "truncation='truncate' or 'windows'"
        )
    if truncation == "truncate":
        return [ids[:max_length]]
    return split_into_windows(ids, prefix_length(encoding, prompt), max_length)


def split_into_windows(ids: list[int], prefix: int, max_length: int) -> list[list[int]]:
    """Consecutive windows of at most `max_length` tokens, each after the first `prefix` tokens.

    Raises:
        InputError: The prefix leaves no room.
    """
    step = _room_after(prefix, max_length)
    return [ids[:prefix] + ids[at : at + step] for at in range(prefix, len(ids), step)]


def token_spans(
    encoding: tokenizers.Encoding, spans: Sequence[tuple[int, int]], shift: int, length: int
) -> list[tuple[int, int]]:
    """[start, stop) tokens of [start, end) character spans of a document.

    Args:
        encoding: The document, and what precedes it, tokenized together.
        spans: Characters of the document. A span from its very beginning takes along what precedes
            the document, as a whole text does.
        shift: The character of the encoded text at which the document begins.
        length: Characters of the document.

    Returns:
        The spans in tokens, in order.

    Raises:
        InputError: A span is empty, outside the document, or holds no token.
    """
    starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    token_ranges = []
    for start, end in spans:
        inside = np.flatnonzero((ends > start + shift) & (starts < end + shift))
        if not 0 <= start < end <= length or not inside.size:
            raise InputError(
                f"span ({start}, {end}) is not a non-empty part of a document of {length} "
                "characters"
            )
        token_ranges.append((0 if start == 0 else int(inside[0]), int(inside[-1]) + 1))
    return token_ranges


def window_rows(
    ids: list[int], spans: Sequence[tuple[int, int]], prefix: int, max_length: int
) -> Iterator[tuple[list[int], Row]]:
    """Rows that read spans of a text, each after as much of the text as fits one row.

    Args:
        ids: The text.
        spans: [start, stop) tokens.
        prefix: How many of the first tokens precede every row.
        max_length: The most tokens in a row.

    Yields:
        Indices of spans, and the row whose special tokens see them.

    Raises:
        InputError: As `group_spans_into_windows`.
    """
    windows = group_spans_into_windows(spans, prefix, len(ids), max_length)
    for indices, (start, stop) in windows:
        shift = prefix - start
        own = tuple((spans[i][0] + shift, spans[i][1] + shift) for i in indices)
        yield indices, Row(ids[:prefix] + ids[start:stop], own)


def group_spans_into_windows(
    spans: Sequence[tuple[int, int]], prefix: int, length: int, max_length: int
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Group spans of a text so that each group fits one window.

    A window ends with its last span and reaches back as far as it may: in a causal model context
    comes before.

    Args:
        spans: [start, stop) tokens.
        prefix: How many tokens precede the text; they precede every window.
        length: Tokens of the text, the prefix included.
        max_length: The most tokens in a window, the prefix included.

    Yields:
        Indices of spans, and the [start, stop) of the window to read them in.

    Raises:
        InputError: A span is longer than a window, or the prefix leaves no room.
    """
    room = _room_after(prefix, max_length)
    if length - prefix <= room:
        if spans:
            yield list(range(len(spans))), (prefix, length)
        return
    group: list[int] = []
    first = 0
    for index in sorted(range(len(spans)), key=lambda i: (spans[i][1], spans[i][0])):
        start, stop = max(spans[index][0], prefix), spans[index][1]
        if stop - start > room:
            raise InputError(
                f"a span has {stop - start} tokens and the model reads {room}: use shorter spans"
            )
        if group and stop - min(first, start) > room:
            yield group, _window_before(spans[group[-1]][1], prefix, room)
            group = []
        first = min(first, start) if group else start
        group.append(index)
    if group:
        yield group, _window_before(spans[group[-1]][1], prefix, room)


def _window_before(stop: int, prefix: int, room: int) -> tuple[int, int]:
    return max(prefix, stop - room), stop


def _room_after(prefix: int, max_length: int) -> int:
    if prefix >= max_length:
        raise InputError(
            f"the prompt has {prefix} tokens and the model reads {max_length}: shorten the prompt"
        )
    return max_length - prefix
