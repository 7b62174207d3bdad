"""Questions that a sentence of prose answers, asked as people ask them.

"Lambda forms are used to create functions." answers "What are lambda forms used for?". Patterns
of English sentences, tried in turn; what does not fit one of them gives no question.

Knows nothing about texts, passages or what is held out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# What says nothing without the sentence before it, or without knowing whose it is.
_VAGUE = {"this", "these", "that", "those", "it", "its", "they", "their", "there", "he", "she",
          "we", "you", "your", "i", "such", "which", "who", "what", "here", "one", "ones", "other",
          "others", "another", "each", "all", "both", "some", "any", "none", "same", "following",
          "above", "below", "however", "note", "see", "also", "if", "when", "and", "or", "but",
          "as", "for", "in", "on", "at", "to", "by", "with", "from", "of", "result", "reason",
          "example", "function", "method", "class", "object", "value", "section", "first",
          "second", "last", "next", "former", "latter", "rest", "main", "goal"}  # fmt: skip
# No part of a name: a subject with one of them is more than a subject.
_MORE = {"when", "if", "that", "which", "is", "are", "was", "were", "not", "only", "then", "return",
         "returns", "get", "set", "call", "use", "can", "will", "must", "may", "and",
         "or"}  # fmt: skip
_DETERMINER = re.compile(r"^(?:the|an?|every|each|any|most|all)\s+", re.IGNORECASE)
_NAMED = (
    "statement|function|method|command|option|operator|class|module|keyword|expression|parameter|"
    "argument|attribute|clause|directive|setting|property|flag|field|type|decorator|table|file|"
    "program|package|tool|protocol|algorithm|library|variable|header|handler|filter|tag|query"
)
# Third person and plain form of verbs that say what a thing is good for.
_DOES = {verb + "s": verb for verb in (
    "accept", "add", "allow", "cause", "change", "check", "close", "compute", "contain", "control",
    "convert", "create", "define", "delete", "depend", "describe", "determine", "disable",
    "display", "enable", "ensure", "evaluate", "execute", "generate", "get", "give", "handle",
    "hold", "implement", "include", "indicate", "keep", "let", "load", "make", "manage", "mean",
    "need", "open", "perform", "prevent", "print", "produce", "provide", "raise", "read",
    "receive", "refer", "remove", "replace", "represent", "require", "return", "run", "save",
    "select", "send", "set", "show", "start", "stop", "store", "support", "take", "update", "use",
    "wait", "write",
)} | {"applies": "apply", "matches": "match", "modifies": "modify", "passes": "pass",
      "searches": "search", "specifies": "specify"}  # fmt: skip
_PLACE = r"(?P<how>by|with|from|in|into|as|to|for|using|on|through|via|at|only)"
_TIME = r"(?P<when>when|before|after|if|until|once|whenever|unless|while)"
_DONE = (
    r"(?P<be>is|are|was|were) "
    r"(?P<done>(?!used)\w+(?:ed|en|set|put|built|known|made|kept|found|run|sent))"
)
_NP = r"(?P<np>[^,;:.]{3,60}?)"
_CLAUSE = r"[^,;:.]{2,50}? (?:is|are|has|have|does|do|was|were|can|cannot|\w{3,}s) [^,;:.]{3,50}?"
_TASK = r"(?P<task>[a-z][^,;:.]{5,80}?)"


def prose_questions(sentence: str) -> Iterator[str]:
    """Questions that a sentence answers; of every pattern that fits, all wordings.

    sentence: on one line, its end included.
    """
    plain = " ".join(re.sub(r"\s+\([^()]*\)", "", sentence).split()).rstrip(".!?")
    for pattern, wordings in _PATTERNS:
        if match := pattern.match(plain):
            parts = {key: value for key, value in match.groupdict().items() if value}
            if not _says_what(parts):
                continue
            for wording in wordings:
                if (asked := _filled(wording, parts)) and len(asked.split()) <= 16:
                    yield asked


def _says_what(parts: dict[str, str]) -> bool:
    """Whether the question's subject stands for itself."""
    if "np" not in parts:
        unsaid = {"this", "that", "these", "those", "it", "they", "so"}
        return unsaid.isdisjoint(parts["task"].lower().split())
    words = _DETERMINER.sub("", parts["np"]).lower().split()
    return (
        0 < len(words) <= 6
        and words[0] not in _VAGUE
        and words[-1] not in _VAGUE
        and _MORE.isdisjoint(words)
        and re.match(r"[\w\"'`]", words[0]) is not None
    )


def _filled(wording: str, parts: dict[str, str]) -> str:
    """The question, or nothing if the sentence lacks a part of it."""
    values = dict(parts)
    if "np" in values:
        values["np"] = _inside(values["np"])
        values["bare"] = _DETERMINER.sub("", values["np"])
        if one := _singular(values["bare"]):
            values["one"] = one
    if "verb" in values:
        values["verb"] = _DOES[values["verb"]]
    if "task" in values:
        values["task"] = _of_the_asker(_inside(values["task"]))
    for key in ("be", "can"):
        if key in values:
            values[key.capitalize()] = values[key].capitalize()
    try:
        return wording.format(**values)
    except KeyError:
        return ""


def _inside(words: str) -> str:
    """A sentence's first words as they stand within one: names and acronyms keep their case."""
    first, _, _ = words.partition(" ")
    plain = first.isalpha() and first == first.capitalize()
    named = re.match(r"\w+ [A-Z]", words) and not _DETERMINER.match(words)
    return words[0].lower() + words[1:] if plain and not named else words


def _singular(words: str) -> str:
    """ "a lambda form" of "lambda forms"; nothing if that is not what the words are."""
    if not re.fullmatch(r"(?:[a-zA-Z-]+ ){0,2}[a-zA-Z]{3,}s", words) or re.search(
        "(ss|us|is)$", words
    ):
        return ""
    one = words[:-3] + "y" if words.endswith("ies") else words[:-1]
    return f"{'an' if one[0] in 'aeio' else 'a'} {one}"


def _of_the_asker(words: str) -> str:
    """What is said to "you" as the one who asks says it."""
    own = {"you": "I", "your": "my", "yourself": "myself", "yours": "mine"}
    return " ".join(own.get(word, word) for word in words.split()).replace("I are", "I am")


def _patterns(*rows: tuple[str, tuple[str, ...]]) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
    return [(re.compile(form), wordings) for form, wordings in rows]


_HOW = ("How do I {task}?", "How can I {task}?", "I want to {task}. How?", "how to {task}")
_PATTERNS = _patterns(
    (rf"(?:To|In order to) {_TASK}, ", _HOW),
    (rf"If you (?:want|need|wish|would like) to {_TASK}, ", _HOW),
    (rf"(?:You|One) can {_TASK} (?:by|with|using|via|through) ", _HOW),
    (rf"(?:Use|Call|Run|Set|Pass|Specify) [^,;:.]{{2,60}}? to {_TASK}$",
     (*_HOW, "What should I use to {task}?")),
    (rf"[^,;:.]{{2,60}}? (?:can|may|should) be used to {_TASK}$",
     ("What can be used to {task}?", "What can I use to {task}?", *_HOW)),
    (rf"If (?P<task>(?:the |an? |no )?{_CLAUSE}), ",
     ("What happens if {task}?", "What if {task}?")),
    (rf"When (?P<task>(?:the |an? |no )?{_CLAUSE}), ",
     ("What happens when {task}?",)),
    (rf"{_NP} (?P<be>is|are) used (?:to|for|by|in|when|with) ",
     ("What {be} {np} used for?", "What {be} {np} for?", "What {be} {np}?", "What is {one}?",
      "What is {one} used for?", "Why would I use {bare}?")),
    (rf"(?P<np>(?:The|An?) [^,;:.]{{2,40}}? (?:{_NAMED})) (?P<verb>{'|'.join(_DOES)}) ",
     ("What does {np} do?", "What is {np} for?", "What is {np}?", "Explain {np}.")),
    (rf"{_NP} (?P<verb>{'|'.join(_DOES)}) ", ("What does {np} {verb}?", "What does {np} do?")),
    (rf"{_NP} (?P<be>is|are) [^,;:.]{{3,80}} because ", ("Why {be} {np} that way?",)),
    (rf"{_NP} {_DONE} {_PLACE} ",
     ("How {be} {np} {done}?", "What {be} {np} {done} {how}?", "What happens to {np}?")),
    (rf"{_NP} {_DONE} (?:\w+ ){{0,4}}{_TIME} ",
     ("When {be} {np} {done}?", "How {be} {np} {done}?")),
    (rf"{_NP} (?P<be>is|are) (?:an?|the|one of|any|simply) ",
     ("What {be} {np}?", "What is {one}?", "Explain {np}.", "Define {bare}.",
      "What does {bare} mean?", "Tell me about {bare}.")),
    (rf"{_NP} (?P<can>can|must|should|may|cannot) (?P<task>(?:not )?[a-z]+[^,;:.]{{3,60}}?)$",
     ("{Can} {np} {task}?",)),
    (rf"{_NP} (?P<be>is|are) (?P<task>(?:not |always |never )?[a-z]+)$", ("{Be} {np} {task}?",)),
)  # fmt: skip
