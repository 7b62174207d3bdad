"""What an engine tells of a text while it generates it, for those who wait and those who read."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future

from gem_rag.generation.sampling import FinishReason, Generation, Sampling, TokenLogprob
from gem_rag.generation.stop_strings import StopStringBuffer


class GenerationListener:
    """Collects one text.

    Args:
        prompt_tokens: How many tokens the prompt has.
        sampling: How the text is generated.
        decode: Decodes tokens.

    Attributes:
        generation: The complete result, or the error that ended it.
        reused_tokens: How many of the prompt's tokens had been read before; set by who reads it.
    """

    def __init__(
        self, prompt_tokens: int, sampling: Sampling, decode: Callable[[Sequence[int]], str]
    ) -> None:
        self.generation: Future[Generation] = Future()
        self.reused_tokens = 0
        self._prompt_tokens, self._top, self._decode = prompt_tokens, sampling.logprobs, decode
        self._buffer = StopStringBuffer(decode, sampling.stop)
        # Stop strings are looked for along the way, which costs time between an engine's steps.
        self._eager = bool(sampling.stop)
        self._tokens: list[int] = []  # not yet decoded
        self._logprobs: list[Mapping[int, float]] = []
        self._lock = threading.Lock()  # a call may be cancelled while its next token comes

    def add(
        self,
        tokens: Sequence[int],
        reason: FinishReason | None,
        logprobs: Sequence[Mapping[int, float]] = (),
    ) -> bool:
        """Take new tokens.

        Args:
            tokens: Their ids.
            reason: Why they are the last, if they are.
            logprobs: For each, its log-probability and those of the likeliest tokens there, by id;
                empty unless they were asked for.

        Returns:
            Whether more are wanted.
        """
        with self._lock:
            if self.generation.done():
                return False
            self._logprobs += logprobs
            return self._add(tokens, reason)

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
            logprobs = tuple(map(self._token_logprob, written, self._logprobs))
            self.generation.set_result(
                Generation(
                    text, written, why, self._prompt_tokens, logprobs=logprobs,
                    reused_tokens=self.reused_tokens,
                )
            )  # fmt: skip
            self._close()
        return not self.generation.done()

    def _token_logprob(self, token: int, logprobs: Mapping[int, float]) -> TokenLogprob:
        possible = [other for other in logprobs if logprobs[other] > -math.inf]
        likeliest = sorted(possible, key=lambda other: -logprobs[other])[: self._top]
        top = tuple(TokenLogprob(t, self._decode([t]), logprobs[t]) for t in likeliest)
        return TokenLogprob(token, self._decode([token]), logprobs[token], top)

    def _show(self, piece: str) -> None:
        """A piece of the text that can be shown."""

    def _close(self) -> None:
        """Nothing more can be shown."""


class StreamListener(GenerationListener):
    """Hands one text on piece by piece."""

    def __init__(
        self, prompt_tokens: int, sampling: Sampling, decode: Callable[[Sequence[int]], str]
    ) -> None:
        super().__init__(prompt_tokens, sampling, decode)
        self._eager = True
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
