"""Conditions on documents' metadata."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gem_rag._utils.suggestions import check_choice
from gem_rag.documents.document import MetadataValue
from gem_rag.errors import InputError

Where = Mapping[str, Any] | Callable[[Mapping[str, MetadataValue]], bool]
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_SYMBOLS = {"=": "", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_CONDITION = re.compile(r"(?P<field>[^=!<>]+?)\s*(?P<symbol>!=|>=|<=|=|>|<)\s*(?P<value>.*)")


def check_where(where: Where) -> None:
    """Raise InputError for a condition that is none."""
    if not isinstance(where, Mapping):
        if not callable(where):
            raise InputError(
                f"where is {where!r}: give a mapping of fields to values, or a function"
            )
        return
    for field, wanted in where.items():
        if isinstance(wanted, Mapping):
            if not wanted:
                raise InputError(f"where: {field!r} has no condition: give one, or leave it out")
            for name, value in wanted.items():
                check_choice(f"where: an operator of {field!r}", name, list(_OPERATORS))
                _check_value(field, value)
        else:
            for value in wanted if _is_list(wanted) else [wanted]:
                _check_value(field, value)


def satisfies(metadata: Mapping[str, MetadataValue], where: Where) -> bool:
    """Whether metadata have every field that is asked for, with a value that fits.

    A condition is a value, a list of values one of which it must be, or a mapping of operators
    ("ne", "gt", "gte", "lt", "lte") to values. Numbers and texts are not compared with each other.
    A function of the metadata decides by itself.
    """
    if not isinstance(where, Mapping):
        return where(metadata)
    return all(
        field in metadata and _fits(metadata[field], wanted) for field, wanted in where.items()
    )


def parse_conditions(texts: Sequence[str]) -> dict[str, Any]:
    """Conditions from texts like `year>=2020`, `type=pdf` or `draft=false`.

    Raises:
        InputError: A text is no condition.
    """
    where: dict[str, Any] = {}
    for text in texts:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise InputError(f"{text!r} is no condition: write field=value, or !=, >, >=, <, <=")
        name, value = _SYMBOLS[match["symbol"]], _parse_value(match["value"])
        field = match["field"].strip()
        if name:
            earlier = where.get(field)
            where[field] = {**(earlier if isinstance(earlier, dict) else {}), name: value}
        else:
            where[field] = [*where[field], value] if _is_list(where.get(field)) else [value]
    return where


def _fits(value: MetadataValue, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return all(_compare(name, value, other) for name, other in wanted.items())
    return value in wanted if _is_list(wanted) else bool(value == wanted)


def _compare(name: str, value: MetadataValue, other: Any) -> bool:
    alike = isinstance(value, str) == isinstance(other, str)
    return _OPERATORS[name](value, other) if alike else name == "ne"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_value(field: str, value: object) -> None:
    if not isinstance(value, str | int | float | bool):
        raise InputError(
            f"where: {field!r} is compared with text, a number or a truth value, not {value!r}"
        )


def _parse_value(text: str) -> MetadataValue:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool) else text
