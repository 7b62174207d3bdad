"""Old names of a recipe's keys, which work with a DeprecationWarning until gem-rag 0.2."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from gem_rag._utils.deprecation import warn_renamed
from gem_rag.errors import InputError

# By the part of a recipe; "data" is any source, also under evaluation.
_NEW_NAMES: dict[str, dict[str, str]] = {
    "schedule": {
        "rate": "learning_rate",
        "contrastive_rate": "contrastive_learning_rate",
        "warmup": "warmup_steps",
        "floor": "min_lr_ratio",
    },
    "data": {"overlong": "truncation"},
    "evaluation": {"at_most": "max_rows"},
}


def upgrade_keys(state: Mapping[str, Any], where: str, warn: bool = True) -> dict[str, Any]:
    """Rename a recipe's old keys.

    Args:
        state: The recipe's values.
        where: What holds them, for errors.
        warn: Whether to warn of old keys.

    Returns:
        A copy of the values with new keys only.

    Raises:
        InputError: A key is there under both names.
    """
    upgraded: dict[str, Any] = copy.deepcopy(dict(state))
    for part, values in _find_parts(upgraded):
        for old, new in _NEW_NAMES[part].items():
            if old not in values:
                continue
            if new in values:
                raise InputError(f"{where}: {old} is now called {new}: give one of them")
            if warn:
                warn_renamed(f"the recipe's key {part}.{old}", f"{part}.{new}", stacklevel=4)
            values[new] = values.pop(old)
    return upgraded


def upgrade_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Rename old keys in values by dotted key, like {"schedule.rate": 1e-4}.

    Raises:
        InputError: A key is there under both names.
    """
    upgraded = {}
    for key, value in changes.items():
        *parents, last = key.split(".")
        part = "data" if parents[-2:-1] == ["data"] else ".".join(parents)
        new = _NEW_NAMES.get(part, {}).get(last)
        if new is None:
            upgraded[key] = value
            continue
        new_key = ".".join([*parents, new])
        if new_key in changes:
            raise InputError(f"{key} is now called {new_key}: give one of them")
        warn_renamed(f"the recipe's key {part}.{last}", f"{part}.{new}", stacklevel=4)
        upgraded[new_key] = value
    return upgraded


def _find_parts(state: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name in the table, values) of the parts that have renamed keys."""
    evaluation = state.get("evaluation")
    parts = [("schedule", state.get("schedule")), ("evaluation", evaluation)]
    for holder in (state, evaluation):
        sources = holder.get("data") if isinstance(holder, dict) else None
        if isinstance(sources, dict):
            parts += [("data", source) for source in sources.values()]
    return [(name, values) for name, values in parts if isinstance(values, dict)]
