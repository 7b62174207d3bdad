"""Facts of docstrings and sections of documentation: a question, and words that answer it.

Facts come from structure (summary, parameters, defaults, returns, errors, examples, headings,
definitions), from sentences with a word that is rare in the text, and from sentences whose form
suggests a question (`gem_tiny.prose`). Every answer is quoted from the text.
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

from gem_tiny.prose import derive_questions
from gem_tiny.texts import Text

_MIN_SENTENCE_WORDS = 3
_MAX_ANSWER_WORDS = 45
# A full stop before the beginning of another sentence, or an empty line.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(\[])|\n\s*\n")
# Headings that do not identify a section.
_GENERIC_HEADINGS = {
    "description", "notes", "note", "parameters", "see also", "example", "examples",
    "introduction", "overview", "synopsis", "usage", "summary", "details", "options", "returns",
    "attributes", "methods", "api", "references", "background",
}  # fmt: skip
# First words of summaries that answer "How do I ...?".
_IMPERATIVES = {
    "return", "get", "set", "create", "compute", "open", "read", "write", "convert", "check", "add",
    "remove", "delete", "find", "parse", "load", "save", "send", "make", "calculate", "build",
    "construct", "generate", "update", "apply", "evaluate", "decode", "encode", "split", "join",
    "sort", "merge", "copy", "move", "print", "format", "run", "start", "stop", "close", "wait",
    "register", "list", "fill", "replace", "select", "draw", "plot", "fit", "estimate", "transform",
    "iterate", "insert", "append", "extract", "test", "determine", "raise", "execute", "call",
    "validate", "render", "display", "show",
}  # fmt: skip
# Factors on the random sort key of a fact, so that kinds few texts have tend to come first.
_SORT_FACTORS = {
    "raises": 0.2, "error": 0.3, "example": 0.5, "returns": 0.5, "prose": 0.3, "parameter": 0.7,
}  # fmt: skip
# "open a file" in "open a file for reading".
_MAIN_CLAUSE = re.compile(r"\S+ \S+ .*?(?= (?:for|by|from|with|using|in|that|which|if|to)\b)")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{3,}")
_DEFINITION = re.compile(r"^(\S[^\n]{1,100})\n    (\S(?:.|\n(?=    ))*)", re.MULTILINE)


@dataclass(frozen=True)
class Fact:
    """The parts of a question, and its answer.

    Attributes:
        kind: A key of `WORDINGS`.
        item: What the question asks about: a parameter, an error, a word, or the whole question;
            empty where it is the text itself.
        answer: Words of the text, separated by single spaces.
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


def extract_facts(text: Text, document_counts: Counter[str], random: Random) -> list[Fact]:
    """Extract the facts of a text, without duplicates, in random order.

    Args:
        text: The text.
        document_counts: Number of texts that contain a word; rare words make good questions.
        random: Source of randomness. Kinds that few texts have tend to come first.

    Returns:
        The facts.
    """
    structure = _of_docstring(text) if text.kind == "docstring" else _of_section(text)
    facts = [
        *structure,
        *_rare_words(text, document_counts, random),
        *_prose(text, document_counts, random),
    ]
    flat = " ".join(text.document.split())
    quoted = [fact for fact in dict.fromkeys(facts) if fact.answer and fact.answer in flat]
    return sorted(quoted, key=lambda fact: random.random() * _SORT_FACTORS.get(fact.kind, 1.0))


def word_question(fact: Fact, name: str, random: Random) -> str:
    """Put a fact into one of its wordings, sometimes as hastily as people type.

    Args:
        fact: The fact.
        name: What the question calls the text.
        random: Source of randomness.

    Returns:
        The question.
    """
    question = random.choice(WORDINGS[fact.kind]).format(name=name, item=fact.item)
    if random.random() < 0.1:
        question = question.rstrip("?.")
        question = question if name != name.lower() else question.lower()
    return question


def choose_subject(text: Text, random: Random) -> str:
    """What a question calls a text: part of its dotted name, or its heading and page."""
    if text.kind == "docstring":
        parts = text.name.split(".")
        name = ".".join(parts[-random.choice((1, 2, 2, 3)) :])
        if parts[-1].startswith("__") and len(parts) > 1:
            name = ".".join(parts[-2:])
        is_called = text.title.endswith(")") and random.random() < 0.25
        return f"{name}()" if is_called else name
    page, _, _ = text.title.partition(" > ")
    heading = re.sub(r"^[\d.]+\s*", "", text.name)
    is_generic = heading.lower() in _GENERIC_HEADINGS or len(heading) < 4
    if page != text.name and (is_generic or random.random() < 0.3):
        return f"{heading} ({page})" if random.random() < 0.5 else f"{page}, {heading}"
    return heading


def extract_first_sentence(text: str) -> str:
    """The first sentence on one line; "" if it is too short or too long for an answer."""
    text = text.strip().lstrip("-*•: ").split("\n\n")[0]
    if not text:
        return ""
    start, stop = find_sentences(text)[0]
    words = text[start:stop].split()
    sentence = " ".join(words)
    return sentence if 2 <= len(words) <= _MAX_ANSWER_WORDS and not sentence.endswith(":") else ""


def find_sentences(text: str) -> list[tuple[int, int]]:
    """[start, stop) of the sentences of three words or more; of the whole text if there is none."""
    bounds = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    spans = []
    for start, stop in itertools.pairwise(bounds):
        sentence = text[start:stop]
        if len(re.findall(r"\w+", sentence)) >= _MIN_SENTENCE_WORDS:
            first = start + len(sentence) - len(sentence.lstrip())
            spans.append((first, start + len(sentence.rstrip())))
    return spans or [(0, len(text))]


# -- docstrings ----------------------------------------------------------------------------------


def _of_docstring(text: Text) -> Iterator[Fact]:
    summary = extract_first_sentence(text.text)
    if len(summary.split()) >= 3 and not re.match(r"[\w*]+ ?[(:]", summary):
        yield Fact("purpose", "", summary)
        yield from _tasks(text, summary)
    yield from _defaults(text)
    yield from _example(text)
    try:
        parsed = docstring_parser.parse(text.text)
    except Exception:  # its parsers raise whatever malformed docstrings lead to
        return
    for parameter in parsed.params:
        yield from _parameter(parameter)
    yield from _outcome(parsed)


def _tasks(text: Text, summary: str) -> Iterator[Fact]:
    """A summary in the imperative answers how to do what it says."""
    verb, *others = summary.rstrip(".").split()
    if verb.lower() not in _IMPERATIVES or not others or len(others) > 12:
        return
    verb = "get" if verb.lower() == "return" else verb.lower()
    task = " ".join([verb, *others]).split(". ")[0]
    yield Fact("how", task, summary)
    if main_clause := _MAIN_CLAUSE.match(task):
        yield Fact("how", main_clause[0], summary)
    if "." in text.name:
        yield Fact("which", task, text.name)


def _parameter(parameter: DocstringParam) -> Iterator[Fact]:
    name = parameter.arg_name.lstrip("*")
    if not name.isidentifier():
        return
    description = extract_first_sentence(parameter.description or "")
    if len(description.split()) >= 3:
        yield Fact("parameter", name, description)
    type_words = (parameter.type_name or "").split()
    if 1 <= len(type_words) <= 10:
        yield Fact("type", name, " ".join(type_words))


def _outcome(parsed: Docstring) -> Iterator[Fact]:
    if parsed.returns:
        description = extract_first_sentence(parsed.returns.description or "")
        type_name = " ".join((parsed.returns.type_name or "").split())
        yield Fact("returns", "", description if len(description.split()) >= 3 else type_name)
    for error in parsed.raises:
        type_name = (error.type_name or "").strip("`: ")
        description = extract_first_sentence(error.description or "")
        if type_name.replace(".", "").isidentifier():
            yield Fact("error", "", type_name)
            if len(description.split()) >= 3:
                yield Fact("raises", type_name, description)


def _defaults(text: Text) -> Iterator[Fact]:
    """Default values in the signature that the title contains."""
    _, bracket, signature = text.title.partition("(")
    try:
        function = ast.parse(f"def f({signature}: pass" if bracket else "").body[0]
    except (SyntaxError, ValueError, IndexError):
        return
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    positional = (arguments.posonlyargs + arguments.args)[::-1]
    pairs = [*zip(positional, arguments.defaults[::-1], strict=False)]
    keyword_only = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    pairs += [(argument, default) for argument, default in keyword_only if default]
    for argument, default in pairs:
        value = ast.unparse(default)
        if value != "None" and len(value) <= 40:
            yield Fact("default", argument.arg, value)


def _example(text: Text) -> Iterator[Fact]:
    """The first line of an example that calls the function."""
    short_name = text.name.rsplit(".", 1)[-1]
    for line in text.text.split("\n"):
        code = line.strip().removeprefix(">>> ")
        if line.strip().startswith(">>> ") and f"{short_name}(" in code and len(code) <= 120:
            yield Fact("example", "", " ".join(code.split()))
            return


# -- sections ------------------------------------------------------------------------------------


def _of_section(text: Text) -> Iterator[Fact]:
    opening = extract_first_sentence(text.text)
    if len(opening.split()) >= 5 and _is_sentence(opening):
        yield Fact("heading", "", opening)
    for match in _DEFINITION.finditer(text.text):
        term = re.split(r"[(:\[]", match[1])[0].removeprefix("class ").strip(" -")
        definition = extract_first_sentence(match[2])
        is_term = 1 <= len(term.split()) <= 3 and len(term) <= 60 and "=" not in term
        if is_term and len(definition.split()) >= 4:
            yield Fact("definition", term, definition)


# -- any text ------------------------------------------------------------------------------------


def _rare_words(text: Text, document_counts: Counter[str], random: Random) -> Iterator[Fact]:
    """Sentences of the body that a rare word of theirs asks for."""
    counts = Counter(_WORD.findall(text.text))
    limit = _rarity_limit(document_counts)
    spans = find_sentences(text.text)[1:]
    for start, stop in random.sample(spans, min(3, len(spans))):
        sentence = extract_first_sentence(text.text[start:stop])
        words = {w for w in _WORD.findall(sentence) if counts[w] == 1 and w not in text.title}
        rarest = sorted(words, key=lambda word: (document_counts[word.lower()], word))[:3]
        rare = [word for word in rarest if document_counts[word.lower()] <= limit]
        if rare and len(sentence.split()) >= 6 and _is_sentence(sentence):
            yield Fact("detail", random.choice(rare), sentence)


def _prose(text: Text, document_counts: Counter[str], random: Random) -> Iterator[Fact]:
    """Sentences whose form suggests a question, if a rare word in it identifies its subject."""
    limit = _rarity_limit(document_counts)
    for start, stop in find_sentences(text.text):
        sentence = extract_first_sentence(text.text[start:stop])
        if len(sentence.split()) < 4 or not _is_sentence(sentence.lstrip("\"'`*")):
            continue
        questions = [
            question
            for question in derive_questions(sentence)
            if any(document_counts[word.lower()] <= limit for word in _WORD.findall(question))
        ]
        if questions:
            yield Fact("prose", random.choice(questions), sentence)


def _rarity_limit(document_counts: Counter[str]) -> int:
    """In how many texts a rare word occurs at most."""
    return max(5, document_counts.total() // 10_000)


def _is_sentence(text: str) -> bool:
    """Whether a text reads as a sentence, and not as a list, a table or code."""
    return (
        text[0].isalpha()
        and text[-1] in ".!?"
        and not re.search(r"----|====|>>>|^\w+:|^(Parameters|Returns|Notes) ", text)
    )
