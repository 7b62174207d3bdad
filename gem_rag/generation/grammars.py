"""JSON schemas, tools and quotes as grammars that a text is held to while it is written.

Grammars are llguidance's (Lark with JSON schemas), on every engine. A small model that never
comes to an end is brought to one: strings, numbers and lists that a schema leaves open are bounded
by what fits into the text. Knows nothing about engines or conversations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from gem_rag.errors import InputError

Schema = dict[str, Any]

_LARGEST = 10**12
_CHARACTERS = 2  # that a token stands for, at least, in a string of a model that rambles
_ITEM_TOKENS = 16  # of a list's item, at least
_TRIMMED = r"/[^ ]|[^ ].*[^ ]/"  # what begins and ends with something to read
_WRITTEN = ("enum", "const", "pattern", "format")  # what already says how long a string gets


def schema_grammar(schema: Schema, max_tokens: int) -> str:
    """The grammar of a schema's JSON texts, for at most about `max_tokens` tokens."""
    return f"start: %json {json.dumps(closed(schema, max_tokens))}"


def quote_grammar(passages: Sequence[str], refusal: str) -> str:
    """The grammar of a run of one passage's words and its number, like `these words [2]`, or a
    refusal; a space may stand before either.

    One terminal, since a parser that had begun a quote could not end it within a word's reach.
    """
    quotes = [f"QUOTE{n}: (WORDS{n} & {_TRIMMED}) {json.dumps(f' [{n}]')}"
              for n in range(1, len(passages) + 1)]  # fmt: skip
    words = [f"WORDS{n}: %regex {json.dumps({'substring_words': passage})}"
             for n, passage in enumerate(passages, start=1)]  # fmt: skip
    options = [*(f"QUOTE{n}" for n in range(1, len(passages) + 1)), json.dumps(refusal)]
    rules = ["start: ANSWER", f'ANSWER: " "? ({" | ".join(options)})']
    return "\n".join([*rules, *quotes, *words])


def checked(grammar: str) -> str:
    """The grammar itself. Raises InputError with llguidance's reason if it is none."""
    from llguidance import LLMatcher

    if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)):
        raise InputError(f"this schema or grammar cannot be followed: {problem}")
    return grammar


def closed(schema: Schema, max_tokens: int) -> Schema:
    """A stricter schema whose texts come to an end: no keys but those named, no endless values."""
    strings = max(1, sum(part.get("type") == "string" for part in _parts(schema)))
    room = max(0, max_tokens - _skeleton(schema) // _CHARACTERS)
    bounded = _closed(schema, room, max(8, _CHARACTERS * room // strings))
    return {**bounded, "x-guidance": {"whitespace_flexible": False}}


def _closed(value: Any, room: int, longest: int) -> Any:
    if isinstance(value, list):
        return [_closed(part, room, longest) for part in value]
    if not isinstance(value, dict):
        return value
    own = {key: part if key in ("const", "enum", "default") else _closed(part, room, longest)
           for key, part in value.items()}  # fmt: skip
    kind = own.get("type")
    if "properties" in own:
        own.setdefault("additionalProperties", False)
    if kind == "string" and not any(key in own for key in _WRITTEN):
        own.setdefault("maxLength", longest)
    if kind in ("integer", "number"):
        if not {"minimum", "exclusiveMinimum"} & own.keys():
            own["minimum"] = -_LARGEST
        if not {"maximum", "exclusiveMaximum"} & own.keys():
            own["maximum"] = _LARGEST
    if kind == "array":
        own.setdefault("maxItems", max(own.get("minItems", 1), room // _ITEM_TOKENS))
    return own


def _skeleton(value: Any) -> int:
    """Characters that a schema's text needs beside what strings hold."""
    if isinstance(value, list):
        return sum(map(_skeleton, value))
    if not isinstance(value, dict):
        return 0
    options = value.get("anyOf") or value.get("oneOf") or ()
    own = max(map(_skeleton, options), default=0)
    fields = value.get("properties", {})
    own += sum(len(name) + 5 for name in fields)
    inner = [*fields.values(), *value.get("$defs", {}).values(), value.get("items")]
    own += _skeleton(inner) + _skeleton(value.get("allOf"))
    own += max((len(str(written)) for written in value.get("enum", ())), default=0)
    own += len(str(value.get("const", "")))
    return own + (len(str(_LARGEST)) if value.get("type") in ("integer", "number") else 2)


def _parts(value: Any) -> Iterator[Schema]:
    """All schemas within a schema, itself included."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _parts(part)


def tool_call_schema(tools: Sequence[Schema]) -> Schema:
    """The schema of a call of one of these tools: {"name": ..., "arguments": {...}}.

    tools: {"name": ..., "parameters": JSON schema} each.
    """
    definitions: Schema = {}
    options = []
    for number, tool in enumerate(tools):
        parameters = dict(tool.get("parameters") or {"type": "object", "properties": {}})
        for name, part in parameters.pop("$defs", {}).items():
            definitions[f"{number}.{name}"] = _renamed(part, number)
        keys = {"name": {"const": tool["name"]}, "arguments": _renamed(parameters, number)}
        options.append({"type": "object", "properties": keys, "required": list(keys)})
    return {"anyOf": options, "$defs": definitions}


def _renamed(value: Any, number: int) -> Any:
    """A schema whose references lead to its own tool's definitions."""
    if isinstance(value, list):
        return [_renamed(part, number) for part in value]
    if not isinstance(value, dict):
        return value
    found = {key: _renamed(part, number) for key, part in value.items()}
    if isinstance(reference := found.get("$ref"), str):
        found["$ref"] = reference.replace("#/$defs/", f"#/$defs/{number}.", 1)
    return found
