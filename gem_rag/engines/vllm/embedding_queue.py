"""Rows that wait to be embedded: gathered into batches, and given turns beside generation.

vLLM runs an embedding batch between two of its steps. While text is being generated, embeddings
may take a set share of the time; whoever drives vLLM asks `pause` how long to wait for the next
batch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from gem_rag.core.arrays import FloatArray
from gem_rag.core.layout import Row
from gem_rag.errors import InputError

_LULL = 2.0  # seconds without generation, after which no more is expected soon


@dataclass
class _Call:
    """One call's rows that wait, and its vectors as batches bring them."""

    future: Future[FloatArray]
    waiting: deque[Row]
    missing: int
    vectors: list[FloatArray] = field(default_factory=list)

    def fail(self, error: BaseException) -> None:
        """Unless it is over already."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass
class Batch:
    """Rows to be embedded together, and whom they belong to."""

    rows: list[Row]
    calls: list[_Call]
    started: float


class EmbeddingQueue:
    """Batches of as many rows as fit, taken from all calls in turn. For one thread's use.

    A call of a few rows is done soon, however many rows another call waits for.

    Args:
        k: Special tokens in a group.
        batch_tokens: Most tokens in a batch; a longer row goes alone.
        turn_tokens: The same while text is being generated, which waits for a batch to end; and
            shortly afterwards, when the next request may come at any time.
        share: Of the time, that embeddings may take while text is being generated; above 0, at
            most 1.
    """

    def __init__(self, k: int, batch_tokens: int, turn_tokens: int, share: float) -> None:
        check_share(share)
        self._k, self._share = k, share
        self._batch_tokens, self._turn_tokens = batch_tokens, min(turn_tokens, batch_tokens)
        self._calls: deque[_Call] = deque()  # that have rows waiting; the next in turn first
        self._next_turn = 0.0
        self._generated = -math.inf  # when text was last being generated

    def __len__(self) -> int:
        """How many rows are waiting for somebody."""
        return sum(len(call.waiting) for call in self._calls if not call.future.done())

    def add(self, rows: Sequence[Row], future: Future[FloatArray]) -> None:
        """Rows whose vectors, one for each span, in order, become the future's result."""
        if rows:
            self._calls.append(_Call(future, deque(rows), len(rows)))
        else:
            future.set_result(np.empty((0, 0), dtype=np.float32))

    def pause(self, generating: bool) -> float:
        """Seconds until embeddings may run; 0 for now."""
        return max(0.0, self._next_turn - time.monotonic()) if generating else 0.0

    def take(self, generating: bool) -> Batch:
        """The next batch, whose turn begins; rows of calls that were cancelled are left out."""
        now = time.monotonic()
        batch, tokens = Batch([], [], now), 0
        if generating:
            self._generated = now
        most = self._turn_tokens if now - self._generated < _LULL else self._batch_tokens
        while self._calls:
            call = self._calls[0]
            if call.future.done():
                self._calls.popleft()
                continue
            tokens += call.waiting[0].length(self._k)
            if batch.rows and tokens > most:
                break
            batch.rows.append(call.waiting.popleft())
            batch.calls.append(call)
            self._calls.rotate(-1)
            if not call.waiting:
                self._calls.pop()
        return batch

    def done(self, batch: Batch, vectors: FloatArray) -> None:
        """The turn ends with one vector for each span of the batch's rows: [spans, dim]."""
        self._end_turn(batch)
        at = 0
        for row, call in zip(batch.rows, batch.calls, strict=True):
            call.vectors.append(vectors[at : at + len(row.spans)])
            at += len(row.spans)
            call.missing -= 1
            if not call.missing and not call.future.done():
                call.future.set_result(np.concatenate(call.vectors))

    def failed(self, batch: Batch, error: BaseException) -> None:
        """The turn ends with an error for everyone who had rows in the batch."""
        self._end_turn(batch)
        for call in batch.calls:
            call.fail(error)

    def fail_all(self, error: BaseException) -> None:
        """Nothing will be embedded any more."""
        while self._calls:
            self._calls.popleft().fail(error)

    def _end_turn(self, batch: Batch) -> None:
        now = time.monotonic()
        self._next_turn = now + (now - batch.started) * (1 - self._share) / self._share


def check_share(share: float) -> None:
    """Raises InputError unless this is a share of the time that lets embeddings run at all."""
    if not 0 < share <= 1:
        raise InputError(
            f"embed_share must be above 0 and at most 1, not {share}: it is the share of the time "
            "that embeddings may take while text is being generated"
        )
