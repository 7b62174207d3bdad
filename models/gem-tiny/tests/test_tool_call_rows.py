"""Rows of tool calls."""

from __future__ import annotations

import json

import pytest
from gem_tiny.texts import Text
from gem_tiny.tool_call_rows import make_small_talk_rows, make_tool_call_rows
from llguidance import LLMatcher, LLTokenizer

from gem_rag.generation.tools import Tools

TEXTS = [
    Text("docstring", "a package", "shapes", name, f"# shapes.{name}{signature}", text, out)
    for name, signature, text, out in (
        ("area", "(width: float, height: float) -> float",
         "Compute the area of a rectangle. Negative sides raise ValueError.", False),
        ("Shape.rename", "(self, name: str, quiet=False)",
         "Give the shape another name that it is drawn with.", False),
        ("Shape.moved", "(self, *steps)", "Move the shape along by several steps.", False),
        ("secret", "(key: int)", "Nothing may be learnt from what is held out.", True),
    )
]  # fmt: skip


def test_rows_are_calls_the_grammar_allows() -> None:
    tokenizer = LLTokenizer("byte")
    names = set()
    for messages, written in make_tool_call_rows(TEXTS, seed=0, count=300):
        assert [m["role"] for m in messages[:2]] == ["system", "user"]
        shown = messages[0]["content"].splitlines()[1:-1]
        found = json.loads(written)
        if "answer" in found:
            continue
        names.add(found["name"])
        function = {"name": found["name"], "parameters": _schema(shown, found["name"])}
        grammar = Tools([{"type": "function", "function": function}]).grammar()
        checked = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
        assert checked.consume_tokens(tokenizer.tokenize_str(written)), written
        assert checked.is_accepting()
        for value in _leaves(found["arguments"]):  # there to be copied
            assert str(value) in messages[1]["content"] or isinstance(value, bool)
    assert {"area", "rename", "get_weather"} <= names
    assert not {"secret", "moved"} & names  # held out; without parameters


def test_talk_has_nothing_to_answer_from() -> None:
    questions = [f"What does part {number} do?" for number in range(40)]
    found = list(make_small_talk_rows(questions, seed=0, limit=30))
    assert found == list(make_small_talk_rows(questions, seed=0, limit=30))
    assert len(found) == 30
    asked = [messages[0]["content"] for messages, _ in found]
    answers = dict(zip(asked, (written for _, written in found), strict=True))
    assert {answers[q] for q in questions if q in answers} == {
        " I answer from passages, and there are none here."
    }
    assert set(asked) - set(questions)  # greetings


def _schema(shown: list[str], name: str) -> dict:
    line = next(line for line in shown if line.startswith(f"{name}("))
    inside = line.removeprefix(f"{name}(").partition(")")[0]
    kinds = dict(part.split(": ") for part in inside.split(", "))
    properties = {key: {"type": kind} for key, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _leaves(value: object) -> list:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def test_rows_are_the_same_for_the_same_seed() -> None:
    first, again, other = (list(make_tool_call_rows(TEXTS, seed, 40)) for seed in (0, 0, 1))
    assert first == again != other


def test_answers_come_after_results_and_where_no_tool_fits() -> None:
    rows = list(make_tool_call_rows(TEXTS, 0, 300))
    told = [(m, json.loads(w)["answer"]) for m, w in rows if "answer" in json.loads(w)]
    returned = [(m[-1]["content"], answer) for m, answer in told if len(m) == 4]
    assert 20 < len(returned) < 60
    assert all(said.endswith(f"returned: {answer}") for said, answer in returned)
    assert sum(answer == "No tool does that." for _, answer in told) > 10


def test_texts_without_functions_are_refused() -> None:
    with pytest.raises(ValueError, match="no text is a function's"):
        next(make_tool_call_rows(TEXTS[-1:], 0, 1))
