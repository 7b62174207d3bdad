"""Stop strings: found wherever token boundaries fall, never shown.

Knows nothing about models or tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there was one."""
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def shown_length(text: str, stop: Sequence[str]) -> int:
    """How much of a growing text can be shown: all but an end that may become a stop string.

    A replacement character at the end is half of a character whose other bytes are to come.
    """
    text = text.rstrip("\ufffd")
    shown = len(text)
    for s in stop:
        for size in range(min(len(s) - 1, len(text)), 0, -1):
            if text.endswith(s[:size]):
                shown = min(shown, len(text) - size)
                break
    return shown
