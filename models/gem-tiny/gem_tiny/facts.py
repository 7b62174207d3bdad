"""What a docstring or a section of documentation says, as questions and the words that answer.

Facts come from structure: summary, parameters, defaults, returns, errors, examples, headings,
definitions, sentences with a word that stands nowhere else in the text, and sentences whose form
gives a question (prose.py). Every answer is a run of the text's own words.

Knows nothing about passages or what is held out.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import docstring_parser
from docstring_parser import Docstring, DocstringParam

from gem_tiny.corpus import Text
from gem_tiny.prose import prose_questions

_SHORTEST_SENTENCE = 3  # words
# The end of a sentence before something that begins one, or an empty line.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(\[])|\n\s*\n")
_LONGEST = 45  # words of an answer
_GENERIC = {"description", "notes", "note", "parameters", "see also", "example", "examples",
            "introduction", "overview", "synopsis", "usage", "summary", "details", "options",
            "returns", "attributes", "methods", "api", "references", "background"}  # fmt: skip
# First words of summaries that tell what to do, for "How do I ...?"
_VERBS = {"return", "get", "set", "create", "compute", "open", "read", "write", "convert", "check",
          "add", "remove", "delete", "find", "parse", "load", "save", "send", "make", "calculate",
          "build", "construct", "generate", "update", "apply", "evaluate", "decode", "encode",
          "split", "join", "sort", "merge", "copy", "move", "print", "format", "run", "start",
          "stop", "close", "wait", "register", "list", "fill", "replace", "select", "draw",
          "plot", "fit", "estimate", "transform", "iterate", "insert", "append", "extract",
          "test", "determine", "raise", "execute", "call", "validate", "render", "display",
          "show"}  # fmt: skip
# Kinds that few texts have come first more often.
_RARE = {"raises": 0.2, "error": 0.3, "example": 0.5, "returns": 0.5, "prose": 0.3,
         "parameter": 0.7}  # fmt: skip
# "open a file" of "open a file for reading".
_FIRST_WORDS = re.compile(r"\S+ \S+ .*?(?= (?:for|by|from|with|using|in|that|which|if|to)\b)")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{3,}")


@dataclass(frozen=True)
class Fact:
    """A question's parts and its answer.

    kind: decides the wordings.
    item: the parameter, error or word that is asked for, or the whole question; empty where the
        name says it all.
    answer: words of the text, with single spaces.
    """

    kind: str
    item: str
    answer: str


WORDINGS: dict[str, tuple[str, ...]] = {
    "purpose": (
        "What does {name} do?", "What is {name} for?", "What is the purpose of {name}?",
        "What is {name}?", "Explain {name}.", "Describe {name}.", "{name}",
        "Why would I use {name}?",
    ),
    "how": ("How do I {item}?", "How can I {item}?", "I want to {item}.", "How to {item}?"),
    "which": (
        "What can I use to {item}?", "Which function or class can {item}?",
        "What is there to {item}?", "What should I call to {item}?",
    ),
    "parameter": (
        "What does the parameter {item} of {name} mean?", "What is {item} in {name}?",
        "What should I pass as {item} to {name}?", "What is the argument {item} of {name} for?",
        "What does {item} do in {name}?", "Explain the parameter {item} of {name}.",
        "{name} {item} parameter",
    ),
    "type": (
        "What type is {item} in {name}?", "Of what type is the parameter {item} of {name}?",
        "Which type does {name} expect for {item}?",
    ),
    "default": (
        "What is the default of {item} in {name}?",
        "What is the default value of {item} in {name}?",
        "What does {item} default to in {name}?", "If I leave out {item}, what does {name} use?",
    ),
    "returns": (
        "What does {name} return?", "What is the return value of {name}?",
        "What do I get back from {name}?", "What is the result of {name}?",
    ),
    "raises": (
        "When does {name} raise {item}?", "Why does {name} raise {item}?",
        "What causes {item} in {name}?", "I get {item} from {name}. Why?",
    ),
    "error": (
        "What does {name} raise?", "Which error can {name} raise?",
        "What exception should I expect from {name}?",
    ),
    "example": (
        "How do I call {name}?", "Show an example of {name}.", "Give me an example of {name}.",
        "How is {name} used?",
    ),
    "heading": (
        "What is said about {name}?", "What is {name}?", "Explain {name}.", "Tell me about {name}.",
        "What should I know about {name}?", "{name}",
    ),
    "definition": (
        "What is {item}?", "What does {item} do?", "What does {item} mean?", "Explain {item}.",
        "What is {item} in {name}?",
    ),
    "prose": ("{item}",),
    "detail": (
        "What does {name} say about {item}?", "What about {item} in {name}?", "{name} {item}",
        "How is {item} related to {name}?", "What is said about {item} for {name}?",
        "How does {name} treat {item}?",
    ),
}  # fmt: skip


def facts(text: Text, common: Counter[str], random: Random) -> list[Fact]:
    """What is said in a text, each once, in an order drawn by `random`: rare kinds early.

    common: in how many texts every word stands; rare words make questions.
    """
    kinds = _of_docstring(text) if text.kind == "docstring" else _of_section(text)
    found = [*kinds, *_details(text, common, random), *_prose(text, common, random)]
    flat = " ".join(text.document.split())
    kept = [fact for fact in dict.fromkeys(found) if fact.answer and fact.answer in flat]
    return sorted(kept, key=lambda fact: random.random() * _RARE.get(fact.kind, 1.0))


def wording(fact: Fact, name: str, random: Random) -> str:
    """The fact's question, in one of its wordings."""
    question = random.choice(WORDINGS[fact.kind]).format(name=name, item=fact.item)
    if random.random() < 0.1:  # as people type
        question = question.rstrip("?.")
        question = question if name != name.lower() else question.lower()
    return question


def first_sentence(text: str) -> str:
    """The first sentence on one line; empty if it says too little or goes on for too long."""
    text = text.strip().lstrip("-*•: ").split("\n\n")[0]
    if not text:
        return ""
    start, stop = sentences(text)[0]
    found = " ".join(text[start:stop].split())
    return found if 2 <= len(found.split()) <= _LONGEST and not found.endswith(":") else ""


# -- docstrings ----------------------------------------------------------------------------------


def _of_docstring(text: Text) -> Iterator[Fact]:
    summary = first_sentence(text.text)
    if len(summary.split()) >= 3 and not re.match(r"[\w*]+ ?[(:]", summary):
        yield Fact("purpose", "", summary)
        yield from _tasks(text, summary)
    yield from _defaults(text)
    yield from _example(text)
    try:
        parsed = docstring_parser.parse(text.text)
    except Exception:  # its parsers raise whatever odd docstrings lead to
        return
    for parameter in parsed.params:
        yield from _parameter(parameter)
    yield from _outcome(parsed)


def _tasks(text: Text, summary: str) -> Iterator[Fact]:
    """A summary that begins with a verb answers how to do what it says."""
    verb, *others = summary.rstrip(".").split()
    if verb.lower() not in _VERBS or not others or len(others) > 12:
        return
    verb = "get" if verb.lower() == "return" else verb.lower()
    task = " ".join([verb, *others]).split(". ")[0]
    yield Fact("how", task, summary)
    if short := _FIRST_WORDS.match(task):
        yield Fact("how", short[0], summary)
    if "." in text.name:
        yield Fact("which", task, text.name)


def _parameter(parameter: DocstringParam) -> Iterator[Fact]:
    name = parameter.arg_name.lstrip("*")
    if not name.isidentifier():
        return
    if len((said := first_sentence(parameter.description or "")).split()) >= 3:
        yield Fact("parameter", name, said)
    kind = " ".join((parameter.type_name or "").split())
    if kind and len(kind.split()) <= 10:
        yield Fact("type", name, kind)


def _outcome(parsed: Docstring) -> Iterator[Fact]:
    if parsed.returns:
        said = first_sentence(parsed.returns.description or "")
        kind = " ".join((parsed.returns.type_name or "").split())
        yield Fact("returns", "", said if len(said.split()) >= 3 else kind)
    for error in parsed.raises:
        kind = (error.type_name or "").strip("`: ")
        said = first_sentence(error.description or "")
        if kind.replace(".", "").isidentifier():
            yield Fact("error", "", kind)
            if len(said.split()) >= 3:
                yield Fact("raises", kind, said)


def _defaults(text: Text) -> Iterator[Fact]:
    """Defaults that the title's signature gives."""
    _, bracket, signature = text.title.partition("(")
    try:
        function = ast.parse(f"def f({signature}: pass" if bracket else "").body[0]
    except (SyntaxError, ValueError, IndexError):
        return
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    named = (given.posonlyargs + given.args)[::-1]
    pairs = [*zip(named, given.defaults[::-1], strict=False)]
    pairs += [(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True) if d]
    for argument, default in pairs:
        value = ast.unparse(default)
        if value != "None" and len(value) <= 40:
            yield Fact("default", argument.arg, value)


def _example(text: Text) -> Iterator[Fact]:
    """The first line of an example that uses the name."""
    short = text.name.rsplit(".", 1)[-1]
    for line in text.text.split("\n"):
        code = line.strip().removeprefix(">>> ")
        if line.strip().startswith(">>> ") and f"{short}(" in code and len(code) <= 120:
            yield Fact("example", "", " ".join(code.split()))
            return


# -- sections ------------------------------------------------------------------------------------

_DEFINITION = re.compile(r"^(\S[^\n]{1,100})\n    (\S(?:.|\n(?=    ))*)", re.MULTILINE)


def _of_section(text: Text) -> Iterator[Fact]:
    said = first_sentence(text.text)
    if len(said.split()) >= 5 and _is_sentence(said):
        yield Fact("heading", "", said)
    for match in _DEFINITION.finditer(text.text):
        term = re.split(r"[(:\[]", match[1])[0].removeprefix("class ").strip(" -")
        said = first_sentence(match[2])
        if (
            1 <= len(term.split()) <= 3
            and len(term) <= 60
            and len(said.split()) >= 4
            and "=" not in term
        ):
            yield Fact("definition", term, said)


def subject(text: Text, random: Random) -> str:
    """What a question calls the text: a name, more or less of it; or a heading and its page."""
    if text.kind == "docstring":
        parts = text.name.split(".")
        name = ".".join(parts[-random.choice((1, 2, 2, 3)) :])
        if parts[-1].startswith("__") and len(parts) > 1:
            name = ".".join(parts[-2:])
        called = text.title.endswith(")") and random.random() < 0.25
        return f"{name}()" if called else name
    page, _, _ = text.title.partition(" > ")
    heading = re.sub(r"^[\d.]+\s*", "", text.name)
    generic = heading.lower() in _GENERIC or len(heading) < 4
    if page != text.name and (generic or random.random() < 0.3):
        return f"{heading} ({page})" if random.random() < 0.5 else f"{page}, {heading}"
    return heading


# -- any text ------------------------------------------------------------------------------------


def _details(text: Text, common: Counter[str], random: Random) -> Iterator[Fact]:
    """Sentences of the body, asked for by a rare word of theirs."""
    counts = Counter(_WORD.findall(text.text))
    most = _rarely(common)
    spans = sentences(text.text)[1:]
    for start, stop in random.sample(spans, min(3, len(spans))):
        said = first_sentence(text.text[start:stop])
        words = {w for w in _WORD.findall(said) if counts[w] == 1 and w not in text.title}
        rare = sorted(words, key=lambda w: (common[w.lower()], w))[:3]
        rare = [w for w in rare if common[w.lower()] <= most]
        if rare and len(said.split()) >= 6 and _is_sentence(said):
            yield Fact("detail", random.choice(rare), said)


def _prose(text: Text, common: Counter[str], random: Random) -> Iterator[Fact]:
    """Sentences whose form gives a question, if a rare word says what it is about."""
    most = _rarely(common)
    for start, stop in sentences(text.text):
        said = first_sentence(text.text[start:stop])
        if len(said.split()) < 4 or not _is_sentence(said.lstrip("\"'`*")):
            continue
        asked = [question for question in prose_questions(said)
                 if any(common[w.lower()] <= most for w in _WORD.findall(question))]  # fmt: skip
        if asked:
            yield Fact("prose", random.choice(asked), said)


def _rarely(common: Counter[str]) -> int:
    """In how many texts a word of one text in a few hundred stands."""
    return max(5, common.total() // 10_000)


def _is_sentence(text: str) -> bool:
    """Whether it reads as one, and not as a list, a table or code."""
    return (
        text[0].isalpha()
        and text[-1] in ".!?"
        and not re.search(r"----|====|>>>|^\w+:|^(Parameters|Returns|Notes) ", text)
    )


def sentences(text: str) -> list[tuple[int, int]]:
    """[start, stop) of the sentences of a text; of all of it, if none has three words."""
    bounds = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    found = []
    for start, stop in itertools.pairwise(bounds):
        sentence = text[start:stop]
        if len(re.findall(r"\w+", sentence)) >= _SHORTEST_SENTENCE:
            first = start + len(sentence) - len(sentence.lstrip())
            found.append((first, start + len(sentence.rstrip())))
    return found or [(0, len(text))]
