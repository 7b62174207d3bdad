"""`MicroBatcher`: concurrent calls with equal settings, coalesced into one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Settings = TypeVar("Settings")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Call(Generic[Item, Settings, Result]):
    items: Sequence[Item]
    settings: Settings
    cost: int
    results: Future[list[Result]] = field(default_factory=Future)


class MicroBatcher(Generic[Item, Settings, Result]):
    """Runs one batch at a time; each batch coalesces waiting calls with equal settings.

    Args:
        run: Computes a result for each item, in order.
        max_cost: The most cost of the calls in one batch; a single call may exceed it.
        exclusive: Whether a call with these settings must run alone.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item], Settings], list[Result]],
        max_cost: int,
        exclusive: Callable[[Settings], bool],
    ) -> None:
        self._run, self._max_cost, self._exclusive = run, max_cost, exclusive
        self._running, self._queue_lock = threading.Lock(), threading.Lock()
        self._waiting: list[_Call[Item, Settings, Result]] = []

    def __call__(self, items: Sequence[Item], settings: Settings, cost: int) -> list[Result]:
        """The items' results; an error is raised in every call of the batch that caused it."""
        call = _Call[Item, Settings, Result](items, settings, cost)
        with self._queue_lock:
            self._waiting.append(call)
        with self._running:
            if not call.results.done():  # else it ran in another call's batch
                self._run_batch(self._take_batch(call))
        return call.results.result()

    def _take_batch(
        self, first: _Call[Item, Settings, Result]
    ) -> list[_Call[Item, Settings, Result]]:
        """Remove a call, and the waiting ones that can run with it, from the queue."""
        with self._queue_lock:
            self._waiting.remove(first)
            batch, cost = [first], first.cost
            for call in [] if self._exclusive(first.settings) else list(self._waiting):
                if call.settings == first.settings and cost + call.cost <= self._max_cost:
                    self._waiting.remove(call)
                    batch.append(call)
                    cost += call.cost
        return batch

    def _run_batch(self, batch: Sequence[_Call[Item, Settings, Result]]) -> None:
        items = [item for call in batch for item in call.items]
        try:
            results = iter(self._run(items, batch[0].settings))
        except BaseException as error:
            for call in batch:
                call.results.set_exception(error)
            return
        for call in batch:
            call.results.set_result([next(results) for _ in call.items])
