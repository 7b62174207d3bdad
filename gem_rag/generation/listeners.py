"""What an engine tells of a text while it generates it, for those who wait and those who read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future

from gem_rag.generation.sampling import FinishReason, Generation
from gem_rag.generation.stop_strings import StopStringBuffer


class GenerationListener:
    """Collects one text.

    Args:
        prompt_tokens: How many tokens the prompt has.
        buffer: Collects its tokens and looks for stop strings.
        eager: Whether to decode along the way, as stop strings need; it costs time between an
            engine's steps.

    Attributes:
        generation: The complete result, or the error that ended it.
    """

    def __init__(self, prompt_tokens: int, buffer: StopStringBuffer, eager: bool = False) -> None:
        self.generation: Future[Generation] = Future()
        self._prompt_tokens, self._buffer, self._eager = prompt_tokens, buffer, eager
        self._tokens: list[int] = []  # not yet decoded
        self._lock = threading.Lock()  # a call may be cancelled while its next token comes

    def add(self, tokens: Sequence[int], reason: FinishReason | None) -> bool:
        """Take new tokens; a reason says that they are the last. False if no more are wanted."""
        with self._lock:
            return not self.generation.done() and self._add(tokens, reason)

    def fail(self, error: BaseException) -> None:
        """The text gets no further, unless it is complete."""
        with self._lock:
            if not self.generation.done():
                self.generation.set_exception(error)
                self._close()

    def _add(self, tokens: Sequence[int], reason: FinishReason | None) -> bool:
        self._tokens += tokens
        if self._eager or reason:
            self._show(self._buffer.add(self._tokens))
            self._tokens = []
        if reason or self._buffer.stopped:
            self._show(self._buffer.flush())
            why: FinishReason = "stop" if self._buffer.stopped or reason == "stop" else "length"
            text, written = self._buffer.text, tuple(self._buffer.tokens)
            self.generation.set_result(Generation(text, written, why, self._prompt_tokens))
            self._close()
        return not self.generation.done()

    def _show(self, piece: str) -> None:
        """A piece of the text that can be shown."""

    def _close(self) -> None:
        """Nothing more can be shown."""


class StreamListener(GenerationListener):
    """Hands one text on piece by piece."""

    def __init__(self, prompt_tokens: int, buffer: StopStringBuffer) -> None:
        super().__init__(prompt_tokens, buffer, eager=True)
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None ends it

    @property
    def ready(self) -> bool:
        """Whether the next piece, or the end, is there."""
        return not self._pieces.empty()

    def pieces(
        self, before_each: Callable[[], None] = lambda: None
    ) -> Generator[str, None, Generation]:
        """The pieces as they come; returns the complete result.

        Args:
            before_each: Called before waiting for a piece.
        """
        before_each()
        while (piece := self._pieces.get()) is not None:
            yield piece
            before_each()
        return self.generation.result()

    def _show(self, piece: str) -> None:
        if piece:
            self._pieces.put(piece)

    def _close(self) -> None:
        self._pieces.put(None)
