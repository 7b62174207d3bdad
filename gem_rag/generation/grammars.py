"""Grammars for constrained decoding: JSON schemas, tool calls and quotes.

Grammars are llguidance's (Lark with embedded JSON schemas) on every engine. Strings, numbers and
lists that a schema leaves open are bounded by `max_tokens`, so that a small model that would ramble
comes to an end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from gem_rag.errors import InputError

Schema = dict[str, Any]

_LARGEST_NUMBER = 10**12
_CHARACTERS_PER_TOKEN = 2  # at least, in a string of a model that rambles
_TOKENS_PER_ITEM = 16  # of a list, at least
_TRIMMED = r"/[^ ]|[^ ].*[^ ]/"  # begins and ends with something to read
_BOUNDED_STRING_KEYS = ("enum", "const", "pattern", "format")


def schema_grammar(schema: Schema, max_tokens: int) -> str:
    """The grammar of a schema's JSON texts, for at most about `max_tokens` tokens."""
    return f"start: %json {json.dumps(bound_schema(schema, max_tokens))}"


def quote_grammar(passages: Sequence[str], refusal: str, most: int = 1) -> str:
    """The grammar of quotations, `most` at most: words of one passage in a row and the passage's
    number, like `these words [2]`; or of the refusal. A space may precede either.

    It is a single terminal: a parser that has begun a quote could not end it within a word.
    """
    numbers = range(1, len(passages) + 1)
    quotes = [f"QUOTE{n}: (WORDS{n} & {_TRIMMED}) {json.dumps(f' [{n}]')}" for n in numbers]
    words = [
        f"WORDS{n}: %regex {json.dumps({'substring_words': passage})}"
        for n, passage in zip(numbers, passages, strict=True)
    ]
    quote = " | ".join(f"QUOTE{n}" for n in numbers)
    more = f' (" " ({quote})){{0,{most - 1}}}' if most > 1 else ""
    answer = f'ANSWER: " "? (({quote}){more} | {json.dumps(refusal)})'
    return "\n".join(["start: ANSWER", answer, *quotes, *words])


def validate_grammar(grammar: str) -> str:
    """The grammar, unchanged.

    Raises:
        InputError: llguidance cannot compile it; the message has its reason.
    """
    from llguidance import LLMatcher

    if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)):
        raise InputError(f"this schema or grammar cannot be followed: {problem}")
    return grammar


def bound_schema(schema: Schema, max_tokens: int) -> Schema:
    """A stricter schema whose texts end: no unnamed keys, no unbounded values."""
    strings = max(1, sum(part.get("type") == "string" for part in _subschemas(schema)))
    room = max(0, max_tokens - _fixed_characters(schema) // _CHARACTERS_PER_TOKEN)
    bounded = _bound(schema, room, max(8, _CHARACTERS_PER_TOKEN * room // strings))
    return {**bounded, "x-guidance": {"whitespace_flexible": False}}


def _bound(value: Any, room: int, max_characters: int) -> Any:
    if isinstance(value, list):
        return [_bound(part, room, max_characters) for part in value]
    if not isinstance(value, dict):
        return value
    bounded = {
        key: part if key in ("const", "enum", "default") else _bound(part, room, max_characters)
        for key, part in value.items()
    }
    kind = bounded.get("type")
    if "properties" in bounded:
        bounded.setdefault("additionalProperties", False)
    if kind == "string" and not any(key in bounded for key in _BOUNDED_STRING_KEYS):
        bounded.setdefault("maxLength", max_characters)
    if kind in ("integer", "number"):
        if not {"minimum", "exclusiveMinimum"} & bounded.keys():
            bounded["minimum"] = -_LARGEST_NUMBER
        if not {"maximum", "exclusiveMaximum"} & bounded.keys():
            bounded["maximum"] = _LARGEST_NUMBER
    if kind == "array":
        bounded.setdefault("maxItems", max(bounded.get("minItems", 1), room // _TOKENS_PER_ITEM))
    return bounded


def _fixed_characters(value: Any) -> int:
    """Characters that a schema's text needs beside the contents of its strings."""
    if isinstance(value, list):
        return sum(map(_fixed_characters, value))
    if not isinstance(value, dict):
        return 0
    options = value.get("anyOf") or value.get("oneOf") or ()
    count = max(map(_fixed_characters, options), default=0)
    fields = value.get("properties", {})
    count += sum(len(name) + 5 for name in fields)
    count += _fixed_characters(
        [*fields.values(), *value.get("$defs", {}).values(), value.get("items")]
    )
    count += _fixed_characters(value.get("allOf"))
    count += max((len(str(choice)) for choice in value.get("enum", ())), default=0)
    count += len(str(value.get("const", "")))
    is_number = value.get("type") in ("integer", "number")
    return count + (len(str(_LARGEST_NUMBER)) if is_number else 2)


def _subschemas(value: Any) -> Iterator[Schema]:
    """All schemas within a schema, itself included."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _subschemas(part)


def tool_call_schema(tools: Sequence[Schema]) -> Schema:
    """The schema of a call of one of these tools: {"name": ..., "arguments": {...}}.

    Args:
        tools: {"name": ..., "parameters": JSON schema} each.
    """
    definitions: Schema = {}
    options = []
    for number, tool in enumerate(tools):
        parameters = dict(tool.get("parameters") or {"type": "object", "properties": {}})
        for name, part in parameters.pop("$defs", {}).items():
            definitions[f"{number}.{name}"] = _renumber_references(part, number)
        properties = {
            "name": {"const": tool["name"]},
            "arguments": _renumber_references(parameters, number),
        }
        options.append({"type": "object", "properties": properties, "required": list(properties)})
    return {"anyOf": options, "$defs": definitions}


def _renumber_references(value: Any, number: int) -> Any:
    """A schema whose references lead to the definitions of its own tool."""
    if isinstance(value, list):
        return [_renumber_references(part, number) for part in value]
    if not isinstance(value, dict):
        return value
    renumbered = {key: _renumber_references(part, number) for key, part in value.items()}
    if isinstance(reference := renumbered.get("$ref"), str):
        renumbered["$ref"] = reference.replace("#/$defs/", f"#/$defs/{number}.", 1)
    return renumbered
