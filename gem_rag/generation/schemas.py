"""JSON schemas: what a grammar can hold of one, and what is checked once a text is complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

Schema = dict[str, Any]

# Keywords by what they hold: schemas by name, a list of schemas, a schema. All others hold values.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = (
    "items", "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if",
    "then", "else", "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip
# What restricts a text and llguidance does not know.
_UNHELD = (
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems",
    "propertyNames", "dependentRequired", "dependentSchemas", "dependencies",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
# llguidance's settings. "oneOf" is written as "anyOf", and checked afterwards.
GUIDANCE = {"whitespace_flexible": False, "coerce_one_of": True}
TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")


def held_by_grammar(schema: Schema) -> tuple[Schema, list[str]]:
    """The part of a schema that a grammar can hold.

    Objects with named properties have no others unless the schema says so, or puts objects together
    of several: a model that may name its own would go on.

    Args:
        schema: Any JSON schema.

    Returns:
        A schema that llguidance compiles, as far as its parts decide, and what it leaves out, like
        "uniqueItems of tags".
    """
    left_out: list[str] = []
    is_combined = _combines_objects(schema)

    def hold(part: Schema, path: str) -> Schema:
        held = dict(part)
        for key in _unheld(part):
            del held[key]
            if key != "format":  # which is a remark, and restricts nothing
                left_out.append(f"{key} of {path}" if path else key)
        if "properties" in held and not is_combined:
            held.setdefault("additionalProperties", False)
        return held

    held = map_schemas(schema, hold)
    return {**held, "x-guidance": GUIDANCE}, left_out


def map_schemas(schema: Any, change: Callable[[Schema, str], Schema], path: str = "") -> Any:
    """A schema with a change made to each schema within it, inner ones first.

    Args:
        schema: The schema; true and false stay as they are.
        change: Told of a schema and of the path of properties that leads to it.
        path: Of the schema itself.
    """
    if not isinstance(schema, dict):
        return schema
    mapped: Schema = {}
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, dict):
            mapped[key] = {
                name: map_schemas(part, change, ".".join(filter(None, (path, name))))
                for name, part in value.items()
            }
        elif key in _LISTS and isinstance(value, list):
            mapped[key] = [map_schemas(part, change, path) for part in value]
        elif key in _SINGLE:
            mapped[key] = map_schemas(value, change, path)
        else:
            mapped[key] = value
    return change(mapped, path)


def fault_of(text: str, schema: Schema) -> str:
    """What is wrong with a text that should be JSON of a schema; empty if nothing is."""
    import jsonschema
    import referencing.exceptions
    from jsonschema_specifications import REGISTRY  # without which others are looked for online

    try:
        value = json.loads(text)
    except ValueError as error:
        return f"it is not JSON ({error})"
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        fault = jsonschema.exceptions.best_match(kind(schema, registry=REGISTRY).iter_errors(value))
    except (jsonschema.exceptions.UnknownType, referencing.exceptions.Unresolvable, re.error):
        return ""  # the schema itself is at fault
    if fault is None:
        return ""
    place = ".".join(map(str, fault.absolute_path))
    return f"{place}: {fault.message}" if place else str(fault.message)


def _combines_objects(schema: Schema) -> bool:
    """Whether an object somewhere must follow several schemas, of which each names some of its
    properties."""
    found = False

    def look(part: Schema, path: str) -> Schema:
        nonlocal found
        named = [part, *part.get("allOf", ())] if "properties" in part else part.get("allOf", ())
        options = [*part.get("anyOf", ()), *part.get("oneOf", ())]
        of_objects = [
            option
            for option in options
            if isinstance(option, dict) and option.keys() & {"properties", "$ref", "allOf"}
        ]
        refers = "$ref" in part and "properties" in part
        found = found or len(named) + bool(of_objects) + refers > 1
        return part

    map_schemas(schema, look)
    return found


def _unheld(schema: Schema) -> Iterator[str]:
    """Keywords that llguidance does not know, or not with these values."""
    for key in _UNHELD:
        if key in schema:
            yield key
    if isinstance(pattern := schema.get("pattern"), str) and problem_of(
        json.dumps({"type": "string", "pattern": pattern})
    ):
        yield "pattern"
    if "format" in schema and problem_of(
        json.dumps({"type": "string", "format": schema["format"]})
    ):
        yield "format"
    types = schema.get("type", ())
    if not set([types] if isinstance(types, str) else types) <= set(TYPES):
        yield "type"
    if isinstance(ref := schema.get("$ref"), str) and not ref.startswith("#"):
        yield "$ref"


@lru_cache(maxsize=1024)
def problem_of(schema: str) -> str:
    """Why llguidance cannot compile a schema, given as JSON; empty if it can."""
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_lark(f"start: %json {schema}")
    return str(LLMatcher.validate_grammar(grammar))
