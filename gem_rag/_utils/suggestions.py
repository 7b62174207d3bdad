"""Checks of names that users write; errors suggest the closest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from gem_rag.errors import InputError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the end of an error, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def check_known(names: Iterable[str], known: Sequence[str], problem: str, remedy: str = "") -> None:
    """Raise InputError for the first name that is not known: PROBLEM 'name' (did you mean ...?)."""
    for name in names:
        if name not in known:
            raise InputError(f"{problem} {name!r}{did_you_mean(name, known)}{remedy}")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise InputError naming the allowed values if this is none of them."""
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
