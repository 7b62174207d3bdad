"""An answer from passages, with citations that can be checked.

Knows nothing about how passages were found.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from gem_rag.core.config import AnswerStyle, check_margin
from gem_rag.documents.document import Chunk
from gem_rag.errors import InputError
from gem_rag.generation.grammars import quote_grammar
from gem_rag.generation.sampling import stop_strings
from gem_rag.model import Gem
from gem_rag.rag.hits import Hit

INSTRUCTIONS = (
    "Answer the question from the passages below, in their own words where you can, and cite "
    "them like [1]. If they do not answer it, say that they do not."
)
REFUSAL = "The passages do not answer this."
_PROMPT = f"{INSTRUCTIONS}\n\n{{passages}}\n\nQuestion: {{question}}\nAnswer:"
# A base model does not know where to end: a plain prompt's answer is one paragraph.
_PLAIN_STOP = ("\n\n", "\nQuestion:")
_SHORTEST_QUOTE = 4  # words
_QUOTED = re.compile(r"(?P<words>.+) \[(?P<number>\d+)\]")


@dataclass(frozen=True)
class Citation:
    """A place in a document that the answer rests on.

    number: of the passage in the prompt, from 1.
    source: the document's name.
    span: [start, stop) characters of the quote in the document's text.
    quote: those characters.
    """

    number: int
    source: str
    span: tuple[int, int]
    quote: str


@dataclass(frozen=True)
class Answer:
    """An answer and what it rests on.

    citations: quotes found word for word in a passage, or passages cited like [1].
    hits: passages that were read, in the order of their numbers.
    timings: seconds spent in "search" and "generate".
    """

    text: str
    citations: list[Citation]
    hits: list[Hit]
    timings: dict[str, float] = field(default_factory=dict)


def answer(
    gem: Gem, question: str, hits: Sequence[Hit], style: AnswerStyle | None = None, *,
    margin: float | None = None, **sampling: Any,
) -> Answer:  # fmt: skip
    """Answer a question from passages, as many of them as the model's context holds.

    style: "free" lets the model write, "quote" holds it to words of one passage and the passage's
        number, or `REFUSAL`; default the checkpoint's own.
    margin: passages that score lower than the best by more than this are not read; default the
        checkpoint's own (`answer_margin`), 2 reads all.
    sampling: as for `Gem.generate`.

    The prompt is the checkpoint's own (`answer_prompt`), else its chat template's, else plain.
    Raises InputError if the question is empty, or too long to leave room for a passage.
    """
    check_style(style)
    check_margin("margin", margin)
    if not question.strip():
        raise InputError("the question is empty: ask something")
    if sampling.get("max_tokens") is None:
        sampling["max_tokens"] = max(16, min(256, gem.context // 4))
    near = _near(hits, gem.config.answer_margin if margin is None else margin)
    prompt, read = _fitting_prompt(gem, question, near, gem.context - sampling["max_tokens"])
    start = time.perf_counter()
    if (style or gem.config.answer_style) == "quote":
        text, citations = _quote(gem, prompt, read, sampling)
    else:
        text = _write(gem, prompt, sampling)
        citations = cite(text, [hit.chunk for hit in read])
    return Answer(text, citations, read, {"generate": time.perf_counter() - start})


def _near(hits: Sequence[Hit], margin: float | None) -> Sequence[Hit]:
    if margin is None or not hits:
        return hits
    best = max(hit.score for hit in hits)
    return [hit for hit in hits if hit.score >= best - margin]


def check_style(style: str | None) -> None:
    """Raises InputError if there is no such style."""
    if style not in (None, *get_args(AnswerStyle)):
        raise InputError(f"there is no style {style!r}: use {' or '.join(get_args(AnswerStyle))}")


def _write(gem: Gem, prompt: list[int], sampling: dict[str, Any]) -> str:
    if gem.config.answer_prompt is not None or not gem.has_chat_template:
        sampling["stop"] = [*stop_strings(sampling.get("stop")), *_PLAIN_STOP]
    return gem.generate([prompt], **sampling)[0].text.strip()


def _quote(
    gem: Gem, prompt: list[int], read: Sequence[Hit], sampling: dict[str, Any]
) -> tuple[str, list[Citation]]:
    """Words of one passage and its number, which the grammar leaves no way around, or a refusal."""
    passages = [_flat(hit.chunk.passage) for hit in read]
    sampling["grammar"] = quote_grammar(passages, REFUSAL)
    text = gem.generate([prompt], **sampling)[0].text.strip()
    quoted = _QUOTED.fullmatch(text)
    if not quoted:  # refused, or cut by max_tokens
        return text, []
    number = int(quoted["number"])
    return text, [_citation(number, read[number - 1].chunk, quoted["words"])]


def _citation(number: int, chunk: Chunk, words: str) -> Citation:
    """Where a quote stands in the chunk's text; the whole chunk for words of its title."""
    found = re.search(r"\s+".join(map(re.escape, words.split())), chunk.text)
    start, stop = found.span() if found else (0, len(chunk.text))
    place = (chunk.start + start, chunk.start + stop)
    return Citation(number, chunk.source, place, chunk.text[start:stop])


def _fitting_prompt(
    gem: Gem, question: str, hits: Sequence[Hit], room: int
) -> tuple[list[int], list[Hit]]:
    """The prompt with the most passages that fits in `room` tokens, and those passages."""
    for count in range(len(hits), 0, -1):
        prompt = _prompt(gem, question, [hit.chunk.passage for hit in hits[:count]])
        if len(prompt) <= room:
            return prompt, list(hits[:count])
    passage = hits[0].chunk.passage
    while len(passage) > 80:  # one passage, as much of its beginning as fits
        passage = passage[: len(passage) * 4 // 5]
        prompt = _prompt(gem, question, [passage])
        if len(prompt) <= room:
            return prompt, [hits[0]]
    raise InputError(
        f"the question leaves no room for a passage in the model's {gem.context} tokens: ask a "
        "shorter one, or lower max_tokens"
    )


def _prompt(gem: Gem, question: str, passages: Sequence[str]) -> list[int]:
    prompt = filled(gem.config.answer_prompt or _PROMPT, question, passages)
    if gem.config.answer_prompt is None and gem.has_chat_template:
        return gem.encode_chat([{"role": "user", "content": prompt}])
    return gem.encode(prompt)


def filled(form: str, question: str, passages: Sequence[str]) -> str:
    """A prompt's form with its {passages}, numbered, and its {question}."""
    numbered = "\n\n".join(f"[{n}] {passage}" for n, passage in enumerate(passages, start=1))
    # Parts, not str.format: passages and questions may hold braces.
    parts = {"{passages}": numbered, "{question}": question}
    return "".join(parts.get(part, part) for part in re.split(r"(\{passages\}|\{question\})", form))


def cite(text: str, chunks: Sequence[Chunk]) -> list[Citation]:
    """Where an answer rests on passages: their longest common run of words, if it says enough,
    and passages that the answer cites like [1], best match or not."""
    named = {int(n) for n in re.findall(r"\[(\d+)\]", text)}
    words = _words(re.sub(r"\[\d+\]", " ", text))
    found = []
    for number, chunk in enumerate(chunks, start=1):
        size, span = _longest_run(words, chunk.text)
        if size >= min(_SHORTEST_QUOTE, max(1, len(words))) or (number in named and size):
            start, stop = span
            place = (chunk.start + start, chunk.start + stop)
            found.append((size, Citation(number, chunk.source, place, chunk.text[start:stop])))
    return [citation for _, citation in sorted(found, key=lambda pair: -pair[0])]


def _longest_run(words: Sequence[str], passage: str) -> tuple[int, tuple[int, int]]:
    """Length in words of the longest run both have, and its characters in the passage."""
    places = list(re.finditer(r"\w+", passage))
    own = [place[0].lower() for place in places]
    matcher = difflib.SequenceMatcher(None, words, own, autojunk=False)
    match = matcher.find_longest_match()
    if not match.size:
        return 0, (0, 0)
    last = places[match.b + match.size - 1]
    return match.size, (places[match.b].start(), last.end())


def _flat(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
