"""Array types that cross module borders, and the check that vectors are finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gem_rag.errors import GemError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def check_finite(vectors: FloatArray, texts: Sequence[str]) -> None:
    """Raise GemError naming the first text whose vector, of [texts, dim], is not finite."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise GemError(
            f"the model gives NaN for text {bad[0]} ({texts[bad[0]][:60]!r}): its weights or its "
            "dtype are not fit for it"
        )
