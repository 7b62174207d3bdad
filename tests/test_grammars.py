"""Texts are held to JSON schemas while they are written, by a model that never saw one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

import gem_rag
from gem_rag.errors import InputError
from gem_rag.generation.grammars import bound_schema, tool_call_schema
from gem_rag.model import Gem

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
SCHEMAS = [
    PERSON,
    {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    {"$defs": {"P": PERSON}, "type": "object", "properties": {"p": {"$ref": "#/$defs/P"}},
     "required": ["p"]},
    {"type": "object", "properties": {"x": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
     "required": ["x"]},
]  # fmt: skip


@pytest.fixture(scope="module")
def gem() -> Iterator[Gem]:
    with gem_rag.load("gem-tiny") as loaded:
        yield loaded


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_written_follows_the_schema(
    gem: Gem, schema: dict[str, Any], temperature: float
) -> None:
    prompts = ["hello", "The quick brown fox jumps"]
    for found in gem.generate(
        prompts, schema=schema, max_tokens=120, temperature=temperature, seed=3
    ):
        assert found.finish_reason == "stop"
        jsonschema.validate(json.loads(found.text), schema)


def test_a_streamed_text_is_held_too(gem: Gem) -> None:
    (whole,) = gem.generate(["hello"], schema=PERSON, max_tokens=120)
    assert "".join(gem.stream("hello", schema=PERSON, max_tokens=120)) == whole.text


def test_a_text_is_held_to_a_grammar(gem: Gem) -> None:
    for found in gem.generate(["a", "bcd", "e f g"], grammar='start: "yes" | "no"', max_tokens=9):
        assert found.text in ("yes", "no")
        assert found.finish_reason == "stop"


def test_strings_numbers_and_lists_come_to_an_end() -> None:
    schema = {"type": "object", "properties": {
        "text": {"type": "string"}, "code": {"type": "string", "pattern": "^a+$"},
        "many": {"type": "array", "items": {"type": "number", "maximum": 5}}}}  # fmt: skip
    bounded = bound_schema(schema, 100)["properties"]
    assert 8 <= bounded["text"]["maxLength"] <= 200
    assert bounded["code"] == {"type": "string", "pattern": "^a+$"}
    assert bounded["many"]["maxItems"] >= 1
    assert bounded["many"]["items"]["maximum"] == 5
    assert bounded["many"]["items"]["minimum"] < 0
    assert bound_schema(schema, 100)["additionalProperties"] is False
    assert schema["properties"]["text"] == {"type": "string"}  # the caller's own stays as it was


def test_a_text_of_a_bounded_schema_is_one_of_the_schema() -> None:
    open_schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    assert (
        bound_schema({**open_schema, "additionalProperties": True}, 50)["additionalProperties"]
        is True
    )


def test_definitions_of_tools_do_not_meet() -> None:
    def tool(name: str, of: str) -> dict[str, Any]:
        return {"name": name, "parameters": {
            "type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"],
            "$defs": {"P": {"type": of}}}}  # fmt: skip

    schema = tool_call_schema([tool("a", "integer"), tool("b", "string")])
    for name, good, bad in (("a", 1, "x"), ("b", "x", 1)):
        jsonschema.validate({"name": name, "arguments": {"p": good}}, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"name": name, "arguments": {"p": bad}}, schema)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"schema": {"type": "nothing"}}, "cannot be followed: .*nothing"),
        ({"grammar": "start: ("}, "cannot be followed"),
        ({"schema": {"type": "string"}, "grammar": "start: /a/"}, "not to both"),
        ({"schema": "object"}, "JSON schema as a dict"),
    ],
)
def test_what_cannot_be_followed_is_refused(gem: Gem, settings: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        gem.generate(["x"], **settings)
