"""Stop strings in a growing text, found wherever token boundaries fall and never shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopStringBuffer:
    """Holds back the end of a streamed text that may still become a stop string.

    Args:
        decode: Decodes all tokens generated so far.
        stop: Strings that end the text.

    Attributes:
        tokens: All tokens added.
        text: Their text, up to the first stop string.
        stopped: Whether a stop string has come.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, stop
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False
        self._shown = 0

    def add(self, tokens: Sequence[int]) -> str:
        """Append tokens; returns the text that can now be shown for the first time."""
        self.tokens += tokens
        self.text, self.stopped = cut_at_stop(self._decode(self.tokens), self._stop)
        end = len(self.text) if self.stopped else showable_length(self.text, self._stop)
        return self._release(end)

    def flush(self) -> str:
        """The text that was held back, once no more tokens come."""
        return self._release(len(self.text))

    def _release(self, end: int) -> str:
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there was one."""
    positions = [at for at in (text.find(s) for s in stop) if at >= 0]
    return (text[: min(positions)], True) if positions else (text, False)


def showable_length(text: str, stop: Sequence[str]) -> int:
    """How much of a growing text can be shown: all but an end that may become a stop string.

    A replacement character at the end is half of a character whose other bytes are to come.
    """
    text = text.rstrip("\ufffd")
    length = len(text)
    for s in stop:
        for size in range(min(len(s) - 1, len(text)), 0, -1):
            if text.endswith(s[:size]):
                length = min(length, len(text) - size)
                break
    return length
