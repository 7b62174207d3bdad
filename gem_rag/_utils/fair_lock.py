"""`FairLock`: a lock that is given in the order in which it was asked for."""

from __future__ import annotations

import threading


class FairLock:
    """As `threading.Lock` in a `with` statement, but whoever takes it again and again (for
    every token of a text, say) lets others have their turn.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._next_ticket = self._serving = 0

    def __enter__(self) -> None:
        with self._turn:
            ticket = self._next_ticket
            self._next_ticket += 1
            while self._serving != ticket:
                self._turn.wait()

    def __exit__(self, *exc: object) -> None:
        with self._turn:
            self._serving += 1
            self._turn.notify_all()
