"""Checks of names that users write, with the nearest right one in the error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from gem_rag.errors import InputError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the end of an error, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raises InputError naming the allowed values if this is none of them."""
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
