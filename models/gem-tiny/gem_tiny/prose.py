"""Natural questions derived from sentences of prose.

"Lambda forms are used to create functions." answers "What are lambda forms used for?". Sentences
are matched against patterns of English; those that match none yield no question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_MAX_WORDS = 16  # of a question
# Words that refer to something outside the sentence, or do not identify anything.
_VAGUE = {
    "this", "these", "that", "those", "it", "its", "they", "their", "there", "he", "she", "we",
    "you", "your", "i", "such", "which", "who", "what", "here", "one", "ones", "other", "others",
    "another", "each", "all", "both", "some", "any", "none", "same", "following", "above", "below",
    "however", "note", "see", "also", "if", "when", "and", "or", "but", "as", "for", "in", "on",
    "at", "to", "by", "with", "from", "of", "result", "reason", "example", "function", "method",
    "class", "object", "value", "section", "first", "second", "last", "next", "former", "latter",
    "rest", "main", "goal",
}  # fmt: skip
# Words that are no part of a name: a subject that contains one is more than a noun phrase.
_NOT_IN_NAMES = {
    "when", "if", "that", "which", "is", "are", "was", "were", "not", "only", "then", "return",
    "returns", "get", "set", "call", "use", "can", "will", "must", "may", "and", "or",
}  # fmt: skip
_DETERMINER = re.compile(r"^(?:the|an?|every|each|any|most|all)\s+", re.IGNORECASE)
_KIND_NOUN = (
    "statement|function|method|command|option|operator|class|module|keyword|expression|parameter|"
    "argument|attribute|clause|directive|setting|property|flag|field|type|decorator|table|file|"
    "program|package|tool|protocol|algorithm|library|variable|header|handler|filter|tag|query"
)
_REGULAR_VERBS = (
    "accept", "add", "allow", "cause", "change", "check", "close", "compute", "contain", "control",
    "convert", "create", "define", "delete", "depend", "describe", "determine", "disable",
    "display", "enable", "ensure", "evaluate", "execute", "generate", "get", "give", "handle",
    "hold", "implement", "include", "indicate", "keep", "let", "load", "make", "manage", "mean",
    "need", "open", "perform", "prevent", "print", "produce", "provide", "raise", "read", "receive",
    "refer", "remove", "replace", "represent", "require", "return", "run", "save", "select", "send",
    "set", "show", "start", "stop", "store", "support", "take", "update", "use", "wait", "write",
)  # fmt: skip
# Third person and infinitive of verbs that say what something does.
_INFINITIVE = {verb + "s": verb for verb in _REGULAR_VERBS} | {
    "applies": "apply",
    "matches": "match",
    "modifies": "modify",
    "passes": "pass",
    "searches": "search",
    "specifies": "specify",
}
_VERB = rf"(?P<verb>{'|'.join(_INFINITIVE)})"
_PREPOSITION = r"(?P<how>by|with|from|in|into|as|to|for|using|on|through|via|at|only)"
_CONJUNCTION = r"(?P<when>when|before|after|if|until|once|whenever|unless|while)"
_PASSIVE = (
    r"(?P<be>is|are|was|were) "
    r"(?P<done>(?!used)\w+(?:ed|en|set|put|built|known|made|kept|found|run|sent))"
)
_NOUN_PHRASE = r"(?P<np>[^,;:.]{3,60}?)"
_CLAUSE = r"[^,;:.]{2,50}? (?:is|are|has|have|does|do|was|were|can|cannot|\w{3,}s) [^,;:.]{3,50}?"
_TASK = r"(?P<task>[a-z][^,;:.]{5,80}?)"


def derive_questions(sentence: str) -> Iterator[str]:
    """Derive questions that a sentence answers.

    Args:
        sentence: The sentence on one line, with its final punctuation.

    Yields:
        Every wording of every pattern that matches.
    """
    plain = " ".join(re.sub(r"\s+\([^()]*\)", "", sentence).split()).rstrip(".!?")
    for pattern, wordings in _PATTERNS:
        if match := pattern.match(plain):
            parts = {key: value for key, value in match.groupdict().items() if value}
            if not _is_self_contained(parts):
                continue
            for wording in wordings:
                question = _fill(wording, parts)
                if question and len(question.split()) <= _MAX_WORDS:
                    yield question


def _is_self_contained(parts: dict[str, str]) -> bool:
    """Whether the subject of the question can be understood without context."""
    if "np" not in parts:
        pronouns = {"this", "that", "these", "those", "it", "they", "so"}
        return pronouns.isdisjoint(parts["task"].lower().split())
    words = _DETERMINER.sub("", parts["np"]).lower().split()
    return (
        0 < len(words) <= 6
        and words[0] not in _VAGUE
        and words[-1] not in _VAGUE
        and _NOT_IN_NAMES.isdisjoint(words)
        and re.match(r"[\w\"'`]", words[0]) is not None
    )


def _fill(wording: str, parts: dict[str, str]) -> str:
    """The question, or "" if the wording needs a part that the sentence lacks."""
    values = dict(parts)
    if "np" in values:
        values["np"] = _decapitalize(values["np"])
        values["bare"] = _DETERMINER.sub("", values["np"])
        if singular := _to_singular(values["bare"]):
            values["one"] = singular
    if "verb" in values:
        values["verb"] = _INFINITIVE[values["verb"]]
    if "task" in values:
        values["task"] = _to_first_person(_decapitalize(values["task"]))
    for key in ("be", "can"):
        if key in values:
            values[key.capitalize()] = values[key].capitalize()
    try:
        return wording.format(**values)
    except KeyError:
        return ""


def _decapitalize(words: str) -> str:
    """Lower the first letter of a sentence, except in names and acronyms."""
    first, _, _ = words.partition(" ")
    is_capitalized = first.isalpha() and first == first.capitalize()
    is_name = re.match(r"\w+ [A-Z]", words) and not _DETERMINER.match(words)
    return words[0].lower() + words[1:] if is_capitalized and not is_name else words


def _to_singular(words: str) -> str:
    """ "a lambda form" for "lambda forms"; "" if the words are no regular plural."""
    if not re.fullmatch(r"(?:[a-zA-Z-]+ ){0,2}[a-zA-Z]{3,}s", words) or re.search(
        "(ss|us|is)$", words
    ):
        return ""
    singular = words[:-3] + "y" if words.endswith("ies") else words[:-1]
    return f"{'an' if singular[0] in 'aeio' else 'a'} {singular}"


def _to_first_person(words: str) -> str:
    pronouns = {"you": "I", "your": "my", "yourself": "myself", "yours": "mine"}
    return " ".join(pronouns.get(word, word) for word in words.split()).replace("I are", "I am")


def _compile(*rows: tuple[str, tuple[str, ...]]) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
    return [(re.compile(pattern), wordings) for pattern, wordings in rows]


_HOW = ("How do I {task}?", "How can I {task}?", "I want to {task}. How?", "how to {task}")
_PATTERNS = _compile(
    (rf"(?:To|In order to) {_TASK}, ", _HOW),
    (rf"If you (?:want|need|wish|would like) to {_TASK}, ", _HOW),
    (rf"(?:You|One) can {_TASK} (?:by|with|using|via|through) ", _HOW),
    (
        rf"(?:Use|Call|Run|Set|Pass|Specify) [^,;:.]{{2,60}}? to {_TASK}$",
        (*_HOW, "What should I use to {task}?"),
    ),
    (
        rf"[^,;:.]{{2,60}}? (?:can|may|should) be used to {_TASK}$",
        ("What can be used to {task}?", "What can I use to {task}?", *_HOW),
    ),
    (
        rf"If (?P<task>(?:the |an? |no )?{_CLAUSE}), ",
        ("What happens if {task}?", "What if {task}?"),
    ),
    (rf"When (?P<task>(?:the |an? |no )?{_CLAUSE}), ", ("What happens when {task}?",)),
    (
        rf"{_NOUN_PHRASE} (?P<be>is|are) used (?:to|for|by|in|when|with) ",
        (
            "What {be} {np} used for?",
            "What {be} {np} for?",
            "What {be} {np}?",
            "What is {one}?",
            "What is {one} used for?",
            "Why would I use {bare}?",
        ),
    ),
    (
        rf"(?P<np>(?:The|An?) [^,;:.]{{2,40}}? (?:{_KIND_NOUN})) {_VERB} ",
        ("What does {np} do?", "What is {np} for?", "What is {np}?", "Explain {np}."),
    ),
    (
        rf"{_NOUN_PHRASE} {_VERB} ",
        ("What does {np} {verb}?", "What does {np} do?"),
    ),
    (rf"{_NOUN_PHRASE} (?P<be>is|are) [^,;:.]{{3,80}} because ", ("Why {be} {np} that way?",)),
    (
        rf"{_NOUN_PHRASE} {_PASSIVE} {_PREPOSITION} ",
        ("How {be} {np} {done}?", "What {be} {np} {done} {how}?", "What happens to {np}?"),
    ),
    (
        rf"{_NOUN_PHRASE} {_PASSIVE} (?:\w+ ){{0,4}}{_CONJUNCTION} ",
        ("When {be} {np} {done}?", "How {be} {np} {done}?"),
    ),
    (
        rf"{_NOUN_PHRASE} (?P<be>is|are) (?:an?|the|one of|any|simply) ",
        (
            "What {be} {np}?",
            "What is {one}?",
            "Explain {np}.",
            "Define {bare}.",
            "What does {bare} mean?",
            "Tell me about {bare}.",
        ),
    ),
    (
        rf"{_NOUN_PHRASE} (?P<can>can|must|should|may|cannot) "
        r"(?P<task>(?:not )?[a-z]+[^,;:.]{3,60}?)$",
        ("{Can} {np} {task}?",),
    ),
    (
        rf"{_NOUN_PHRASE} (?P<be>is|are) (?P<task>(?:not |always |never )?[a-z]+)$",
        ("{Be} {np} {task}?",),
    ),
)
