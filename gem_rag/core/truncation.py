"""How texts are read: over-long ones in pieces, parts of one in windows that hold their context.

Plain functions on token counts and offsets. Knows nothing about engines or vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from gem_rag.errors import InputError

if TYPE_CHECKING:
    import tokenizers

Truncation = Literal["truncate", "windows", "error"]


def head_length(encoding: tokenizers.Encoding, prompt: str) -> int:
    """Tokens that stand before the text itself: BOS and the prompt."""
    return next(
        (i for i, (_, end) in enumerate(encoding.offsets) if end > len(prompt)), len(encoding.ids)
    )


def pieces(
    encoding: tokenizers.Encoding, prompt: str, size: int, policy: Truncation
) -> list[list[int]]:
    """The token rows, at most `size` long, that a text is read in: itself unless it is over-long.

    What stands before the text (BOS, the prompt) stands before every window of it.

    Raises InputError for an over-long text under the policy "error", and for a head that leaves
    no room for text.
    """
    ids = encoding.ids
    if len(ids) <= size:
        return [ids]
    if policy == "error":
        raise InputError(
            f"a text has {len(ids)} tokens and the model reads {size}: shorten it, or choose "
            "overlong='truncate' or 'windows'"
        )
    if policy == "truncate":
        return [ids[:size]]
    head = head_length(encoding, prompt)
    step = _room(head, size)
    return [ids[:head] + ids[at : at + step] for at in range(head, len(ids), step)]


def token_spans(
    encoding: tokenizers.Encoding, spans: Sequence[tuple[int, int]], shift: int, length: int
) -> list[tuple[int, int]]:
    """[start, stop) tokens of [start, end) character spans of a document of `length` characters.

    The document begins at character `shift` of what was encoded. A span from its very beginning
    takes what stands before it along, as a whole text does.

    Raises InputError for a span that is empty or outside the document, or holds no token.
    """
    starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    found = []
    for start, end in spans:
        inside = np.flatnonzero((ends > start + shift) & (starts < end + shift))
        if not 0 <= start < end <= length or not inside.size:
            raise InputError(
                f"span ({start}, {end}) is not a non-empty part of a document of {length} "
                "characters"
            )
        found.append((0 if start == 0 else int(inside[0]), int(inside[-1]) + 1))
    return found


def windows(
    parts: Sequence[tuple[int, int]], head: int, length: int, size: int
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Groups of parts (their indices), and the [start, stop) of the text to read them in.

    With the `head` tokens before the text, a window is at most `size` long. It ends with its last
    part and reaches as far back as it may: in a causal model context comes before.

    Raises InputError for a part longer than a window.
    """
    room = _room(head, size)
    if length - head <= room:
        if parts:
            yield list(range(len(parts))), (head, length)
        return
    group: list[int] = []
    first = 0
    for index in sorted(range(len(parts)), key=lambda i: (parts[i][1], parts[i][0])):
        start, stop = max(parts[index][0], head), parts[index][1]
        if stop - start > room:
            raise InputError(
                f"a span has {stop - start} tokens and the model reads {room}: use shorter spans"
            )
        if group and stop - min(first, start) > room:
            yield group, _before(parts[group[-1]][1], head, room)
            group = []
        first = min(first, start) if group else start
        group.append(index)
    if group:
        yield group, _before(parts[group[-1]][1], head, room)


def _before(stop: int, head: int, room: int) -> tuple[int, int]:
    return max(head, stop - room), stop


def _room(head: int, size: int) -> int:
    if head >= size:
        raise InputError(
            f"the prompt has {head} tokens and the model reads {size}: shorten the prompt"
        )
    return size - head
