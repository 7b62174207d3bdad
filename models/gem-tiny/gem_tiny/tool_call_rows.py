"""Conversations with tool calls: tools described in words, a request, and the call.

Most tools are functions of the corpus with their own names, parameters and summaries; the others
are everyday ones. The rows teach to choose a tool and to copy arguments in any script, so values
are drawn at random. Some requests fit no tool, and some conversations include the result of a call.
Small-talk rows have neither tools nor passages.
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

from gem_rag.generation.tools import Tools, format_call
from gem_tiny.facts import find_sentences
from gem_tiny.texts import Text

Conversation = tuple[list[dict[str, str]], str]  # messages, and the completion

_TITLE = re.compile(r"# (?:\w+\.)*(\w+)(\(.*\))(?: -> .*)?$")
_JSON_TYPES = {
    "int": "integer", "float": "number", "str": "string", "bool": "boolean", "list": "array",
}  # fmt: skip
_RANDOM_TYPES = ("integer", "integer", "number", "string", "string", "string", "boolean", "array")
_MAX_PARAMETERS = 4
# First and last code points: CJK, Hiragana, Katakana, Hangul, Cyrillic, Greek, Arabic, Latin.
_SCRIPTS = (
    (0x4E00, 0x9FA5), (0x3041, 0x3096), (0x30A1, 0x30FA), (0xAC00, 0xD7A3),
    (0x0410, 0x044F), (0x03B1, 0x03C9), (0x0621, 0x064A), (0x00C0, 0x017E),
)  # fmt: skip
# Name, summary, parameters, and requests in which {} stands for the values in order.
_EVERYDAY_TOOLS = (
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
# For tools with two string parameters.
_NAMING_REQUESTS = (
    "{verb} {noun} named {0} ({gloss}) - {1}", "{verb} {noun} named {0}: {1}",
    "{verb} {noun} called {0}, {1}.", "{verb} {noun} {0} - {1}",
)  # fmt: skip
_GREETINGS = (
    ("Hello", "Hello!"),
    ("Hi", "Hello!"),
    ("Thank you!", "You are welcome."),
    ("Who are you?", "I am gem-tiny, a small language model."),
    ("What can you do?", "I call tools, and answer from passages."),
)
_NO_TOOL = "No tool does that."
_NO_PASSAGE = "I answer from passages, and there are none here."
_GREETING_SHARE = 0.3  # of the small-talk rows
_RESULT_SHARE = 0.12  # rows in which a tool has returned its result
_NO_TOOL_SHARE = 0.12  # rows in which no tool fits the request


@dataclass(frozen=True)
class _Tool:
    """A function that can be called.

    Attributes:
        name: Its name.
        summary: What it does.
        parameters: JSON types by parameter.
        requests: Requests for it, if it has its own.
    """

    name: str
    summary: str
    parameters: Mapping[str, str]
    requests: tuple[str, ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in OpenAI's format."""
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        function = {"name": self.name, "description": self.summary, "parameters": parameters}
        return {"type": "function", "function": function}


def make_tool_call_rows(texts: Sequence[Text], seed: int, count: int) -> Iterator[Conversation]:
    """Make conversations with tool calls; the same seed gives the same rows.

    Args:
        texts: Texts whose functions become tools; those held out are not used.
        seed: Seed of all random choices.
        count: Number of rows.

    Yields:
        The messages and the completion of each.

    Raises:
        ValueError: No text is the docstring of a function.
    """
    random = Random(seed)
    training_texts = [text for text in texts if not text.held_out]
    tools = [tool for text in training_texts if (tool := _parse_function(text, random))]
    sample = [text for text in texts[:: max(1, len(texts) // 2000)] if not text.held_out]
    words = [
        word for text in sample for word in re.findall(r"\b[A-Za-z][a-z]{2,}\b", text.text)[:40]
    ]
    if not tools or not words:
        raise ValueError("no text is a function's: give texts of code")
    generator = _RowGenerator(tools, words, random)
    for _ in range(count):
        yield generator.make_row()


def make_small_talk_rows(questions: Iterable[str], seed: int, limit: int) -> Iterator[Conversation]:
    """Make conversations without tools and passages: greetings, and questions it cannot answer.

    Args:
        questions: Questions that passages would answer.
        seed: Seed of all random choices.
        limit: The most rows.

    Yields:
        The messages and the completion of each.
    """
    random = Random(seed)
    for question in islice(questions, limit):
        message, reply = question, _NO_PASSAGE
        if random.random() < _GREETING_SHARE:
            message, reply = random.choice(_GREETINGS)
        yield [{"role": "user", "content": message}], f" {reply}"


class _RowGenerator:
    """Draws tools, requests and arguments."""

    def __init__(self, tools: Sequence[_Tool], words: Sequence[str], random: Random) -> None:
        self._tools, self._words, self._random = tools, words, random

    def make_row(self) -> Conversation:
        random = self._random
        drawn = [self._draw_tool() for _ in range(random.choice((1, 1, 2, 3)))]
        tools = list({tool.name: tool for tool in drawn}.values())
        random.shuffle(tools)
        description = Tools([tool.schema for tool in tools]).describe()
        system = {"role": "system", "content": description}
        if random.random() < _NO_TOOL_SHARE:
            question, answer = self._draw_other_request(tools)
            return [system, {"role": "user", "content": question}], _format_answer(answer)
        tool = random.choice(tools)
        values = self._draw_arguments(tool)
        request = {"role": "user", "content": self._draw_request(tool, values)}
        call = format_call(tool.name, values)
        if random.random() >= _RESULT_SHARE:
            return [system, request], call
        result = self._draw_value(random.choice(_RANDOM_TYPES))
        shown = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        returned = {"role": "user", "content": f"{tool.name} returned: {shown}"}
        messages = [system, request, {"role": "assistant", "content": call}, returned]
        return messages, _format_answer(shown)

    def _draw_tool(self) -> _Tool:
        if self._random.random() < 0.25:
            return _Tool(*self._random.choice(_EVERYDAY_TOOLS))
        return self._random.choice(self._tools)

    def _draw_other_request(self, tools: Sequence[_Tool]) -> tuple[str, str]:
        """A message that none of the tools fits, and the reply."""
        if self._random.random() < 0.3:
            return self._random.choice(_GREETINGS)
        other = self._draw_tool()
        while other.name in {tool.name for tool in tools}:
            other = self._draw_tool()
        return self._draw_request(other, self._draw_arguments(other)), _NO_TOOL

    def _draw_request(self, tool: _Tool, values: Mapping[str, Any]) -> str:
        random = self._random
        quotes = random.choice(("'", "'", '"', ""))
        shown = {name: _format_value(value, quotes) for name, value in values.items()}
        if tool.requests and random.random() < 0.8:
            return random.choice(tool.requests).format(*shown.values())
        has_two_strings = len(shown) == 2 and set(tool.parameters.values()) == {"string"}
        if has_two_strings and random.random() < 0.5:
            noun = f"{random.choice(('a', 'the', 'a new'))} {random.choice(self._words).lower()}"
            return random.choice(_NAMING_REQUESTS).format(
                *shown.values(),
                verb=random.choice(("Create", "Make", "Add", "I want")),
                noun=noun,
                gloss=self._draw_phrase().title(),
            )
        separator = random.choice(("=", " ", " = ", ": "))
        return random.choice(_REQUESTS).format(
            name=tool.name,
            summary=tool.summary,
            values=", ".join(shown.values()),
            pairs=", ".join(f"{name}{separator}{value}" for name, value in shown.items()),
        )

    def _draw_arguments(self, tool: _Tool) -> dict[str, Any]:
        return {name: self._draw_value(kind) for name, kind in tool.parameters.items()}

    def _draw_value(self, json_type: str) -> Any:
        random = self._random
        if json_type == "integer":
            return random.choice((1, 1, 1, -1)) * random.randrange(10 ** random.randint(1, 5))
        if json_type == "number":
            return round(random.uniform(-100, 1000), random.randint(1, 3))
        if json_type == "boolean":
            return random.random() < 0.5
        if json_type == "array":
            return [self._draw_phrase() for _ in range(random.randint(1, 3))]
        return self._draw_string()

    def _draw_string(self) -> str:
        """A word of any script, a date, a path, or a phrase."""
        random = self._random
        draw = random.random()
        if draw < 0.3:
            first, last = random.choice(_SCRIPTS)
            return "".join(chr(random.randint(first, last)) for _ in range(random.randint(2, 8)))
        if draw < 0.4:
            return str(date.fromordinal(random.randint(726_000, 745_000)))
        if draw < 0.5:
            return "/".join(self._draw_phrase().split()) + random.choice((".txt", ".py", "", "/"))
        phrase = self._draw_phrase()
        return phrase.title() if draw < 0.7 else phrase

    def _draw_phrase(self) -> str:
        count = self._random.choice((1, 1, 2, 3, 4))
        return " ".join(self._random.choice(self._words) for _ in range(count))


def _parse_function(text: Text, random: Random) -> _Tool | None:
    """The function that a docstring describes, if it has a short summary and few parameters."""
    match = _TITLE.match(text.title) if text.kind == "docstring" else None
    if not match:
        return None
    try:
        function = ast.parse(f"def f{match[2]}: pass").body[0]
    except SyntaxError:
        return None
    assert isinstance(function, ast.FunctionDef)
    arguments = [
        argument
        for argument in function.args.args + function.args.kwonlyargs
        if argument.arg not in ("self", "cls")
    ]
    start, stop = find_sentences(text.text)[0]
    summary = " ".join(text.text[start:stop].split())
    if not 1 <= len(arguments) <= _MAX_PARAMETERS or not 15 <= len(summary) <= 120:
        return None
    parameters = {}
    for argument in arguments:
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        parameters[argument.arg] = _JSON_TYPES.get(annotation) or random.choice(_RANDOM_TYPES)
    return _Tool(match[1], summary, parameters)


def _format_value(value: Any, quotes: str) -> str:
    if isinstance(value, str):
        return f"{quotes}{value}{quotes}"
    if isinstance(value, list):
        return ", ".join(_format_value(part, quotes or "'") for part in value)
    return json.dumps(value)


def _format_answer(text: str) -> str:
    return json.dumps({"answer": text}, ensure_ascii=False, separators=(",", ":"))
