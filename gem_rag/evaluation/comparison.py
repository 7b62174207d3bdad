"""Two evaluations side by side: what differs, and whether it could be chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scipy import stats

from gem_rag.errors import InputError
from gem_rag.evaluation.scores import LOWER_IS_BETTER, Record, Score
from gem_rag.evaluation.significance import Difference, paired

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """One task's metric in both.

    difference: second minus first; its interval and p are nan where only means are known.
    better: "first", "second", or "" if the difference may be chance, or nobody can tell.
    """

    first: Score
    second: Score
    difference: Difference
    better: str


def compare(first: Record, second: Record) -> list[Comparison]:
    """What both have measured, in the first's order; each record's own system only.

    Raises InputError if they have nothing in common.
    """
    found = list(_compared(first, second))
    if not found:
        raise InputError("the two evaluations have no task and metric in common: run the same "
                         "tasks on both")  # fmt: skip
    return found


def _compared(first: Record, second: Record) -> Iterator[Comparison]:
    others = {(s.kind, s.task, s.metric): s for s in second.scores if s.system == second.system}
    for one in first.scores:
        other = others.get((one.kind, one.task, one.metric))
        if one.system != first.system or other is None:
            continue
        difference = _difference(one, other)
        better = ""
        if difference.p < SIGNIFICANT:
            grew = difference.value > 0
            better = "second" if grew != (one.metric in LOWER_IS_BETTER) else "first"
        yield Comparison(one, other, difference, better)


def _difference(one: Score, other: Score) -> Difference:
    """Pair by pair where both have as many items; by standard errors where those are known."""
    if one.items and len(one.items) == len(other.items):
        return paired(one.items, other.items)
    value = other.value - one.value
    if one.error is None or other.error is None or not (one.error or other.error):
        return Difference(value, math.nan, math.nan, math.nan)
    error = math.hypot(one.error, other.error)
    p = float(2 * stats.norm.sf(abs(value) / error))
    return Difference(value, value - 1.96 * error, value + 1.96 * error, p)
