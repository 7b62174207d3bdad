"""Grammars for constrained decoding: JSON schemas, tool calls and quotes.

Grammars are llguidance's (Lark with embedded JSON schemas) on every engine. No field is bounded: a
text that `max_tokens` cuts is unfinished, and says so. What a grammar cannot hold of a schema is
left to a check of the finished text (`schemas.fault_of`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

from gem_rag.errors import InputError
from gem_rag.generation.schemas import (
    GUIDANCE,
    TYPES,
    Schema,
    held_by_grammar,
    map_schemas,
    problem_of,
)

_ROOT_KEYS = ("$id", "$schema", "x-guidance")  # that mean the whole schema
_TRIMMED = r"/[^ ]|[^ ].*[^ ]/"  # begins and ends with something to read


def schema_grammar(schema: Schema) -> str:
    """What Lark knows a schema's JSON texts by; warns of what it cannot hold of the schema.

    Raises:
        InputError: A type is none of JSON's.
    """
    held, left_out = held_by_grammar(schema)
    _check_types(left_out)
    _warn("the schema", left_out)
    return f"%json {json.dumps(held)}"


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


def call_grammar(tools: Sequence[Schema]) -> str:
    """As `schema_grammar`, of a call of one of these tools: {"name": ..., "arguments": {...}}.

    Args:
        tools: {"name": ..., "parameters": JSON schema} each. A type that is none of JSON's is left
            open, and of parameters that cannot be followed as a whole only that they are an object
            is held: one tool does not stop the others.
    """
    definitions: Schema = {}
    options = []
    for number, tool in enumerate(tools):
        held, left_out = held_by_grammar(parameters_of(tool))
        if problem := problem_of(json.dumps(held)):
            held, left_out = {"type": "object"}, [f"its parameters ({problem.splitlines()[0]})"]
        _warn(f"the tool {tool['name']!r}", left_out)
        definitions[str(number)] = _move(held, f"#/$defs/{number}")
        properties = {"name": {"const": tool["name"]},
                      "arguments": {"$ref": f"#/$defs/{number}"}}  # fmt: skip
        options.append({"type": "object", "properties": properties, "required": list(properties),
                        "additionalProperties": False})  # fmt: skip
    call = {"anyOf": options, "$defs": definitions, "x-guidance": GUIDANCE}
    return f"%json {json.dumps(call)}"


def answer_grammar(schema: Schema) -> str:
    """As `schema_grammar`, of an answer: {"answer": ...}."""
    held, left_out = held_by_grammar(schema)
    _check_types(left_out)
    _warn("the schema of the answer", left_out)
    answer = {
        "type": "object", "properties": {"answer": _move(held, "#/properties/answer")},
        "required": ["answer"], "additionalProperties": False, "x-guidance": GUIDANCE,
    }  # fmt: skip
    return f"%json {json.dumps(answer)}"


def parameters_of(tool: Schema) -> Schema:
    """The schema of a tool's arguments."""
    return dict(tool.get("parameters") or {"type": "object", "properties": {}})


def _move(schema: Schema, place: str) -> Schema:
    """A schema that stands at a place in another one: its references begin there."""

    def redirect(part: Schema, path: str) -> Schema:
        moved = {key: value for key, value in part.items() if key not in _ROOT_KEYS}
        if isinstance(reference := part.get("$ref"), str) and reference.startswith("#"):
            moved["$ref"] = place + reference.removeprefix("#")
        return moved

    moved: Schema = map_schemas(schema, redirect)
    return moved


def _check_types(left_out: Sequence[str]) -> None:
    for what in left_out:
        if what.split()[0] == "type":
            raise InputError(
                f"this schema or grammar cannot be followed: the {what} is none of "
                f"{', '.join(TYPES)}"
            )


def _warn(whose: str, left_out: Sequence[str]) -> None:
    if left_out:
        warnings.warn(
            f"no grammar can hold {', '.join(left_out)} of {whose}: it is checked when the text is "
            "complete",
            stacklevel=2,
        )
