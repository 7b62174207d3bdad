"""How sure a mean is, and whether two differ."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_SEED = 0  # the same figures for the same values
_RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """Between the means of paired values, second minus first.

    low, high: 95 % confidence interval (bootstrap over pairs).
    p: of a difference at least as large if the two were interchangeable (permutation test).
    """

    value: float
    low: float
    high: float
    p: float


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean, by bootstrap."""
    found = np.asarray(values, float)
    if len(found) < 2 or np.ptp(found) == 0:  # nothing to draw from: the mean is all there is
        return float(found.mean()), float(found.mean())
    drawn = stats.bootstrap(
        (found,), np.mean, n_resamples=_RESAMPLES, method="percentile", batch=100,
        rng=np.random.default_rng(_SEED),
    )  # fmt: skip
    low, high = drawn.confidence_interval
    return float(low), float(high)


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare values of the same items, pair by pair.

    Raises ValueError if there are not as many of both.
    """
    one, other = np.asarray(first, float), np.asarray(second, float)
    if one.shape != other.shape:
        raise ValueError(f"{len(one)} values cannot be paired with {len(other)}")
    difference = other - one
    low, high = interval(difference.tolist())
    if not difference.any():
        return Difference(0.0, low, high, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few pairs are permuted exactly, and it says so
        tested = stats.permutation_test(
            (difference,), np.mean, permutation_type="samples", n_resamples=_RESAMPLES, batch=100,
            rng=np.random.default_rng(_SEED),
        )  # fmt: skip
    return Difference(float(difference.mean()), low, high, float(tested.pvalue))
