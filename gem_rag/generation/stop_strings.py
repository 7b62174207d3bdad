"""A text as it is written: stop strings found wherever token boundaries fall, never shown.

Knows nothing about models or tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopStringBuffer:
    """One continuation, token by token.

    decode: text of all tokens so far.
    stop: strings that end it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, stop
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False
        self._shown = 0

    def add(self, tokens: Sequence[int]) -> str:
        """What can be shown for the first time, now that these tokens have come."""
        self.tokens += tokens
        self.text, self.stopped = cut_at_stop(self._decode(self.tokens), self._stop)
        return self._show(len(self.text) if self.stopped else shown_length(self.text, self._stop))

    def rest(self) -> str:
        """What was held back, now that nothing more comes."""
        return self._show(len(self.text))

    def _show(self, end: int) -> str:
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece


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
