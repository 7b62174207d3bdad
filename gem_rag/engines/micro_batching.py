"""Calls from many threads that wait for one engine, run together.

Knows nothing about models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Setting = TypeVar("Setting")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Call(Generic[Item, Setting, Result]):
    items: Sequence[Item]
    setting: Setting
    cost: int
    results: Future[list[Result]] = field(default_factory=Future)


class MicroBatcher(Generic[Item, Setting, Result]):
    """Runs calls in turn; whoever's turn it is takes along all that wait with its settings.

    run: gives a result for each item, in order.
    budget: most cost of calls that run together.
    alone: whether a call with these settings shares its turn with nobody.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item], Setting], list[Result]],
        budget: int,
        alone: Callable[[Setting], bool],
    ) -> None:
        self._run, self._budget, self._alone = run, budget, alone
        self._turn, self._change = threading.Lock(), threading.Lock()
        self._waiting: list[_Call[Item, Setting, Result]] = []

    def __call__(self, items: Sequence[Item], setting: Setting, cost: int) -> list[Result]:
        """The items' results; an error is raised for everyone who ran together."""
        call = _Call[Item, Setting, Result](items, setting, cost)
        with self._change:
            self._waiting.append(call)
        with self._turn:
            if not call.results.done():
                self._serve(self._taken_along(call))
        return call.results.result()

    def _taken_along(
        self, first: _Call[Item, Setting, Result]
    ) -> list[_Call[Item, Setting, Result]]:
        with self._change:
            self._waiting.remove(first)
            taken, cost = [first], first.cost
            for call in [] if self._alone(first.setting) else list(self._waiting):
                if call.setting == first.setting and cost + call.cost <= self._budget:
                    self._waiting.remove(call)
                    taken.append(call)
                    cost += call.cost
        return taken

    def _serve(self, calls: Sequence[_Call[Item, Setting, Result]]) -> None:
        try:
            results = iter(self._run([i for call in calls for i in call.items], calls[0].setting))
        except BaseException as error:
            for call in calls:
                call.results.set_exception(error)
            return
        for call in calls:
            call.results.set_result([next(results) for _ in call.items])
