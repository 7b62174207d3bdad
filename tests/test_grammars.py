"""Texts are held to JSON schemas while they are written, by a model that never saw one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import jsonschema
import llguidance
import pytest

import gem_rag
from gem_rag.errors import InputError
from gem_rag.generation.grammars import call_grammar, schema_grammar
from gem_rag.generation.sampling import TextStream
from gem_rag.generation.schemas import fault_of, held_by_grammar
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


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number"},
        {"type": "integer"},
        {"type": "string"},
        {"type": "string", "format": "time"},
        {"type": "string", "format": "uri"},
        {"type": "object", "properties": {"since": {"type": "string", "format": "duration"}},
         "required": ["since"]},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_small_model_repeats_comes_to_an_end(gem: Gem, schema: dict[str, Any]) -> None:
    ids = gem.tokenize_chat([{"role": "user", "content": "Where is the Python website?"}])
    [found] = gem.generate([ids], schema=schema, max_tokens=200)
    assert (found.finish_reason, found.schema_error) == ("stop", "")
    jsonschema.validate(json.loads(found.text), schema)


def test_no_field_is_cut(gem: Gem) -> None:
    """A text that is too long is unfinished, and says so; all that it has is whole."""
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in "abcdefghi"},
              "required": list("abcdefghi")}  # fmt: skip
    (whole,) = gem.generate(["hello"], schema=schema, max_tokens=900)
    assert whole.finish_reason == "stop"
    for room in (20, 60):
        (cut,) = gem.generate(["hello"], schema=schema, max_tokens=room)
        assert cut.finish_reason == "length"
        assert cut.schema_error == f"the text was cut after {room} tokens: raise max_tokens"
        assert whole.text.startswith(cut.text)


def test_long_values_are_written_out(gem: Gem) -> None:
    """As a model would that had so much to say: nothing in the grammar is in its way."""
    schema = {"type": "object", "properties": {"text": {"type": "string"}, "many": {
        "type": "array", "items": {"type": "integer"}}}, "required": ["text", "many"]}  # fmt: skip
    written = json.dumps({"text": "word " * 500, "many": [*range(300), 10**40]},
                         separators=(",", ":"))  # fmt: skip
    assert accepts(schema, written)


@pytest.mark.parametrize(
    ("schema", "right", "wrong", "left_out"),
    [
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True},
         ["a", "b"], ["a", "a"], ["uniqueItems"]),
        ({"properties": {"a": {"not": {"type": "string"}}}}, {"a": 1}, {"a": "x"}, ["not of a"]),
        ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 1}},
         [2, 1], [2], ["contains"]),
        ({"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
          "if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}},
         {"a": 1, "b": 2}, {"a": 1}, ["if", "then"]),
        ({"type": "string", "pattern": "^(?=.*[0-9])[a-z0-9]+$"}, "a1", "ab", ["pattern"]),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, {"ab": 1}, {"b": 1},
         ["propertyNames"]),
        ({"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
          "dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}, ["dependentRequired"]),
        ({"oneOf": [{"type": "integer"}, {"type": "number", "maximum": 5}]}, 7, 3, []),
        ({"type": "string", "format": "password"}, "secret", None, []),
        ({"type": "string", "format": "binary"}, "AAAA", None, []),
        ({"type": "string", "format": "path"}, "/etc", None, []),
        ({"type": "integer", "format": "int64"}, 2**62, None, []),
        ({"definitions": {"P": PERSON}, "$ref": "#/definitions/P"},
         {"name": "Ada", "age": 36}, {"name": "Ada"}, []),
        ({"allOf": [PERSON, {"properties": {"city": {"type": "string"}}, "required": ["city"]}]},
         {"name": "Ada", "age": 36, "city": "Oslo"}, {"name": "Ada", "age": 36}, []),
        ({"$defs": {"P": PERSON}, "allOf": [{"$ref": "#/$defs/P"}, {"properties": {"x": {}}}]},
         {"name": "Ada", "age": 36, "x": 1}, {"x": 1}, []),
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"],
          "anyOf": [{"properties": {"b": {"type": "integer"}}}, {"required": ["c"]}]},
         {"a": 1, "b": 2}, {"b": 2}, []),
        ({"properties": {"enum": {"type": "integer"}, "format": {"type": "string"},
                         "not": {"type": "boolean"}}},
         {"enum": 1, "format": "x", "not": True}, {"enum": "x"}, []),  # names like keywords
    ],
    ids=str,
)  # fmt: skip
def test_what_no_grammar_holds_is_checked_afterwards(
    schema: dict[str, Any], right: Any, wrong: Any, left_out: list[str]
) -> None:
    held, found = held_by_grammar(schema)
    assert found == left_out
    assert accepts(schema, json.dumps(right, separators=(",", ":")))
    assert fault_of(json.dumps(right), schema) == ""
    if left_out:
        assert accepts(schema, json.dumps(wrong, separators=(",", ":")))
    if wrong is not None:
        assert fault_of(json.dumps(wrong), schema)
        jsonschema.Draft202012Validator(held)


def accepts(schema: dict[str, Any], text: str) -> bool:
    """Whether a text can be written under the grammar of a schema."""
    tokenizer = llguidance.LLTokenizer("byte")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grammar = f"start: {schema_grammar(schema)}"
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(grammar))
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def test_what_is_left_out_is_said_and_what_fails_is_named(gem: Gem) -> None:
    schema = {"type": "object", "properties": {"tags": {
        "type": "array", "items": {"enum": ["a"]}, "minItems": 2, "maxItems": 2,
        "uniqueItems": True}}, "required": ["tags"]}  # fmt: skip
    with pytest.warns(UserWarning, match="no grammar can hold uniqueItems of tags of the schema"):
        (found,) = gem.generate(["hello"], schema=schema)
    assert found.text == '{"tags":["a","a"]}'
    assert found.schema_error == "tags: ['a', 'a'] has non-unique elements"
    pieces = TextStream(gem.stream("hello", schema=schema))
    assert "".join(pieces) == found.text
    assert pieces.generation == found


def test_a_schema_with_faults_of_its_own_is_no_fault_of_the_text() -> None:
    for schema in ({"type": "any"}, {"$ref": "https://example.com/x"}, {"pattern": "("}):
        assert fault_of('"x"', schema) == ""
    assert fault_of("{", {}).startswith("it is not JSON")


def test_references_of_tools_lead_to_their_own(gem: Gem) -> None:
    def tool(name: str, of: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "parameters": {
            "type": "object", "properties": {"p": {"$ref": "#/$defs/P"}, **more}, "required": ["p"],
            "$defs": {"P": {"type": of}}}}  # fmt: skip

    tools = [
        tool("a", "integer", twin={"$ref": "#/properties/p"}),
        tool("b", "string", child={"$ref": "#"}),
        {"name": "c", "parameters": {"definitions": {"X": {"enum": [1]}}, "type": "object",
                                     "properties": {"x": {"$ref": "#/definitions/X"}}}},
        {"name": "d", "parameters": {"type": "string", "const": 3}},  # nothing follows it
        {"name": "e"},
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="its parameters .*Unsatisfiable.* of the tool 'd'"):
        rule = call_grammar(tools)
    tokenizer = llguidance.LLTokenizer("byte")
    for name, arguments, is_right in (
        ("a", {"p": 1}, True),
        ("a", {"p": "x"}, False),
        ("a", {"p": 1, "twin": 2}, True),
        ("a", {"p": 1, "twin": "x"}, False),
        ("b", {"p": "x", "child": {"p": "y"}}, True),
        ("b", {"p": "x", "child": {"name": "b"}}, False),
        ("c", {"x": 1}, True),
        ("c", {"x": 2}, False),
        ("d", {"any": "thing"}, True),
        ("e", {}, True),
    ):
        grammar = llguidance.LLMatcher.grammar_from_lark(f"start: {rule}")
        matcher = llguidance.LLMatcher(tokenizer, grammar)
        text = json.dumps({"name": name, "arguments": arguments}, separators=(",", ":"))
        tokens = tokenizer.tokenize_str(text)
        assert (matcher.try_consume_tokens(tokens) == len(tokens)) is is_right, text


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"schema": {"type": "string", "const": 3}}, "cannot be followed: .*Unsatisfiable"),
        ({"schema": {"type": "nothing"}}, "cannot be followed: the type is none of null, boolean"),
        ({"schema": {"properties": {"a": {"type": "any"}}}}, "the type of a is none of"),
        ({"grammar": "start: ("}, "cannot be followed"),
        ({"schema": {"type": "string"}, "grammar": "start: /a/"}, "not to both"),
        ({"schema": "object"}, "JSON schema as a dict"),
    ],
)
def test_what_cannot_be_followed_is_refused(gem: Gem, settings: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        gem.generate(["x"], **settings)
