"""Rows of conversations: tools in words, a request, and the call in the form the grammar asks for.

Most tools are functions of the corpus, with their own names, parameters and summaries; some are
of the everyday kind that conversations have. What a row teaches is to choose among tools and to
copy arguments, in any script, so values are drawn at random. Some requests fit no tool, and some
come with what a tool returned. In rows of talk there are neither tools nor passages.

Knows nothing about models, and reads no held-out text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from random import Random
from typing import Any

from gem_rag.generation.chat import Tools, written_call
from gem_tiny.corpus import Text
from gem_tiny.facts import sentences

_TITLE = re.compile(r"# (?:\w+\.)*(\w+)(\(.*\))(?: -> .*)?$")
_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "list": "array"}
_DRAWN = ("integer", "integer", "number", "string", "string", "string", "boolean", "array")
_MOST_PARAMETERS = 4
_SCRIPTS = ((0x4E00, 0x9FA5), (0x3041, 0x3096), (0x30A1, 0x30FA), (0xAC00, 0xD7A3),
            (0x0410, 0x044F), (0x03B1, 0x03C9), (0x0621, 0x064A), (0x00C0, 0x017E))  # fmt: skip
# Names and parameters; {} stand for the values, in order.
_EVERYDAY = (
    ("get_weather", "Get the weather of a city.", {"city": "string"},
     ("What is the weather in {}?", "How is the weather in {} today?", "Weather in {}?")),
    ("search", "Search for a text.", {"query": "string"},
     ("Search for {}.", "Find something about {}.", "Look up {}.")),
    ("multiply", "Multiply two numbers.", {"a": "integer", "b": "integer"},
     ("What is {} times {}?", "Multiply {} by {}.", "How much is {} * {}?")),
    ("add", "Add two numbers.", {"a": "integer", "b": "integer"},
     ("What is {} plus {}?", "Add {} and {}.", "{} + {}?")),
    ("create_customer", "Create a customer.", {"name": "string", "description": "string"},
     ("Create a customer named {} - {}.", "Create the customer {}: {}.",
      "There is a new customer called {}, {}.")),
    ("send_message", "Send a message to somebody.", {"to": "string", "text": "string"},
     ("Send a message to {} that says {}.", "Tell {}: {}.", "Write {} a message: {}.")),
    ("add_event", "Add an event to the calendar.", {"title": "string", "date": "string"},
     ("Add {} to the calendar on {}.", "Put {} in my calendar for {}.")),
    ("convert_currency", "Convert money.", {"amount": "number", "currency": "string"},
     ("Convert {} to {}.", "How much is {} in {}?")),
    ("open_file", "Open a file.", {"path": "string"}, ("Open {}.", "Show me the file {}.")),
    ("set_timer", "Set a timer.", {"minutes": "integer"},
     ("Set a timer for {} minutes.", "Wake me in {} minutes.")),
    ("order", "Order a product.", {"product": "string", "count": "integer"},
     ("Order {}, {} pieces.", "I want to buy {}: {} of them.")),
    ("translate", "Translate a text.", {"text": "string", "language": "string"},
     ("Translate {} to {}.", "What is {} in {}?")),
)  # fmt: skip
_REQUESTS = (
    "What is the value of {name}({values})? Use the tool.", "What is {name}({values})?",
    "{name}({values})", "Call {name} with {pairs}.", "Use {name} with {pairs}.",
    "Use the tool {name} for {values}.", "Run {name}: {pairs}.", "{summary} {pairs}.",
    "{summary} {values}", "I need {name} of {values}.", "Please call {name} ({pairs}).",
)  # fmt: skip
# For tools that take a text first.
_NAMED = (
    "{verb} {noun} named {0} ({gloss}) - {1}", "{verb} {noun} named {0}: {1}",
    "{verb} {noun} called {0}, {1}.", "{verb} {noun} {0} - {1}",
)  # fmt: skip
_GREETINGS = (("Hello", "Hello!"), ("Hi", "Hello!"), ("Thank you!", "You are welcome."),
              ("Who are you?", "I am gem-tiny, a small language model."),
              ("What can you do?", "I call tools, and answer from passages."))  # fmt: skip
_NO_TOOL = "No tool does that."
_NO_PASSAGE = "I answer from passages, and there are none here."
_GREETED = 0.3  # of the rows of talk
_ANSWERED, _UNFIT = 0.12, 0.12  # of the rows: after a tool returned; for which no tool is fit


@dataclass(frozen=True)
class _Function:
    name: str
    summary: str
    parameters: Mapping[str, str]  # name to JSON type
    requests: tuple[str, ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        shown = {"type": "object", "properties": properties, "required": list(properties)}
        function = {"name": self.name, "description": self.summary, "parameters": shown}
        return {"type": "function", "function": function}


def make_calls(
    texts: Sequence[Text], seed: int, most: int
) -> Iterator[tuple[list[dict[str, str]], str]]:
    """So many (messages, what the model writes), the same for the same seed.

    Raises ValueError if no text is a function's.
    """
    random = Random(seed)
    functions = [f for text in texts if not text.held_out and (f := _function(text, random))]
    words = [word for text in texts[:: max(1, len(texts) // 2000)] if not text.held_out
             for word in re.findall(r"\b[A-Za-z][a-z]{2,}\b", text.text)[:40]]  # fmt: skip
    if not functions or not words:
        raise ValueError("no text is a function's: give texts of code")
    for _ in range(most):
        yield _Call(functions, words, random).row()


def make_talk(
    questions: Iterable[str], seed: int, most: int
) -> Iterator[tuple[list[dict[str, str]], str]]:
    """At most so many (messages, what the model writes): questions with nothing to answer from."""
    random = Random(seed)
    for question in islice(questions, most):
        said, answer = question, _NO_PASSAGE
        if random.random() < _GREETED:
            said, answer = random.choice(_GREETINGS)
        yield [{"role": "user", "content": said}], f" {answer}"


class _Call:
    """One row's tools, request and answer."""

    def __init__(self, functions: Sequence[_Function], words: Sequence[str], random: Random):
        self._functions, self._words, self._random = functions, words, random

    def row(self) -> tuple[list[dict[str, str]], str]:
        random = self._random
        tools = list({f.name: f for f in (self._tool() for _ in range(random.choice((1, 1, 2, 3))))}
                     .values())  # fmt: skip
        random.shuffle(tools)
        shown = Tools([tool.schema for tool in tools])
        system = {"role": "system", "content": shown.described()}
        if random.random() < _UNFIT:
            question, answer = self._unfit(tools)
            return [system, {"role": "user", "content": question}], _answer(answer)
        tool = random.choice(tools)
        values = {name: self._value(kind) for name, kind in tool.parameters.items()}
        asked = {"role": "user", "content": self._request(tool, values)}
        call = written_call(tool.name, values)
        if random.random() >= _ANSWERED:
            return [system, asked], call
        result = self._value(random.choice(_DRAWN))
        returned = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        said = {"role": "user", "content": f"{tool.name} returned: {returned}"}
        return [system, asked, {"role": "assistant", "content": call}, said], _answer(returned)

    def _tool(self) -> _Function:
        if self._random.random() < 0.25:
            return _Function(*self._random.choice(_EVERYDAY))
        return self._random.choice(self._functions)

    def _unfit(self, tools: Sequence[_Function]) -> tuple[str, str]:
        if self._random.random() < 0.3:
            return self._random.choice(_GREETINGS)
        other = self._tool()
        while other.name in {tool.name for tool in tools}:
            other = self._tool()
        values = {name: self._value(kind) for name, kind in other.parameters.items()}
        return self._request(other, values), _NO_TOOL

    def _request(self, tool: _Function, values: Mapping[str, Any]) -> str:
        random = self._random
        quotes = random.choice(("'", "'", '"', ""))
        said = {name: _said(value, quotes) for name, value in values.items()}
        if tool.requests and random.random() < 0.8:
            return random.choice(tool.requests).format(*said.values())
        if len(said) == 2 and set(tool.parameters.values()) == {"string"} and random.random() < 0.5:
            noun = f"{random.choice(('a', 'the', 'a new'))} {random.choice(self._words).lower()}"
            return random.choice(_NAMED).format(
                *said.values(),
                verb=random.choice(("Create", "Make", "Add", "I want")),
                noun=noun,
                gloss=self._phrase().title(),
            )
        between = random.choice(("=", " ", " = ", ": "))
        return random.choice(_REQUESTS).format(
            name=tool.name,
            summary=tool.summary,
            values=", ".join(said.values()),
            pairs=", ".join(f"{name}{between}{value}" for name, value in said.items()),
        )

    def _value(self, kind: str) -> Any:
        random = self._random
        if kind == "integer":
            return random.choice((1, 1, 1, -1)) * random.randrange(10 ** random.randint(1, 5))
        if kind == "number":
            return round(random.uniform(-100, 1000), random.randint(1, 3))
        if kind == "boolean":
            return random.random() < 0.5
        if kind == "array":
            return [self._phrase() for _ in range(random.randint(1, 3))]
        return self._string()

    def _string(self) -> str:
        random = self._random
        draw = random.random()
        if draw < 0.3:
            first, last = random.choice(_SCRIPTS)
            return "".join(chr(random.randint(first, last)) for _ in range(random.randint(2, 8)))
        if draw < 0.4:
            return str(date.fromordinal(random.randint(726_000, 745_000)))
        if draw < 0.5:
            return "/".join(self._phrase().split()) + random.choice((".txt", ".py", "", "/"))
        phrase = self._phrase()
        return phrase.title() if draw < 0.7 else phrase

    def _phrase(self) -> str:
        count = self._random.choice((1, 1, 2, 3, 4))
        return " ".join(self._random.choice(self._words) for _ in range(count))


def _function(text: Text, random: Random) -> _Function | None:
    """A docstring's function as a tool, if it has a summary and a few parameters."""
    match = _TITLE.match(text.title) if text.kind == "docstring" else None
    if not match:
        return None
    try:
        parsed = ast.parse(f"def f{match[2]}: pass").body[0]
    except SyntaxError:
        return None
    assert isinstance(parsed, ast.FunctionDef)
    given = [a for a in parsed.args.args + parsed.args.kwonlyargs if a.arg not in ("self", "cls")]
    start, stop = sentences(text.text)[0]
    summary = " ".join(text.text[start:stop].split())
    if not 1 <= len(given) <= _MOST_PARAMETERS or not 15 <= len(summary) <= 120:
        return None
    parameters = {}
    for argument in given:
        named = ast.unparse(argument.annotation) if argument.annotation else ""
        parameters[argument.arg] = _TYPES.get(named) or random.choice(_DRAWN)
    return _Function(match[1], summary, parameters)


def _said(value: Any, quotes: str) -> str:
    if isinstance(value, str):
        return f"{quotes}{value}{quotes}"
    if isinstance(value, list):
        return ", ".join(_said(part, quotes or "'") for part in value)
    return json.dumps(value)


def _answer(text: str) -> str:
    return json.dumps({"answer": text}, ensure_ascii=False, separators=(",", ":"))
