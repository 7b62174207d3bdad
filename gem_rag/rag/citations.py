"""Where the words of an answer are in the passages it was given, in any script.

Words are compared without case, accents' encoding, soft hyphens and markup. In scripts that put no
spaces between words (Chinese, Japanese, Thai, ...) every character counts by itself, and in Korean,
where particles are written on to a word, every syllable.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gem_rag.documents.document import Chunk
from gem_rag.rag.words import UNSPACED

_MIN_QUOTE = 4.0  # words
_CHARACTER_WEIGHT = 0.5  # of a word, in scripts without spaces
_JOINING_JAMO = re.compile("[\u1160-\u11ff]")  # a syllable's vowel and end, where it is decomposed
_IGNORED = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # soft hyphens, joiners, marks of order
_LINK_TARGET = re.compile(r"(?<=\])\([^()\s]*\)")
_NUMBER = re.compile(r"\[(\d+)\]")
_SPACED_NUMBER = re.compile(r"\s*\[\d+\]")


@dataclass(frozen=True)
class Citation:
    """A place in a document that an answer rests on.

    Attributes:
        number: Of the passage in the prompt, from 1.
        source: The document's name.
        span: [start, stop) characters of the quote in the document's text.
        quote: Those characters.
        place: Where in the document's file they begin, as of a `Hit`; known where an `Index`
            answers.
    """

    number: int
    source: str
    span: tuple[int, int]
    quote: str
    place: str = ""


class _Word(NamedTuple):
    """A word in the form that is compared, and its [start, stop) characters in the text."""

    form: str
    start: int
    stop: int

    @property
    def weight(self) -> float:
        return _CHARACTER_WEIGHT if UNSPACED.match(self.form) else 1.0


def cite(text: str, chunks: Sequence[Chunk]) -> list[Citation]:
    """Find what an answer rests on.

    Args:
        text: The answer.
        chunks: The passages, in the order of their numbers.

    Returns:
        For each passage the longest run of words that it has in common with the answer, if that
        says enough or the answer cites the passage like [1]; the longest first.
    """
    numbers = {int(number) for number in _NUMBER.findall(text)}
    answer = split_words(_NUMBER.sub(" ", text))
    total = sum(word.weight for word in answer)
    citations = []
    for number, chunk in enumerate(chunks, start=1):
        weight, (start, stop) = _longest_common_run(answer, chunk.text)
        if weight and (weight >= min(_MIN_QUOTE, total) or number in numbers):
            citations.append((weight, cite_span(number, chunk, start, stop)))
    return [citation for _, citation in sorted(citations, key=lambda pair: -pair[0])]


def cite_span(number: int, chunk: Chunk, start: int, stop: int) -> Citation:
    """A citation of [start, stop) characters of a chunk's text."""
    span = (chunk.start + start, chunk.start + stop)
    return Citation(number, chunk.source, span, chunk.text[start:stop])


def says_enough(quote: str) -> bool:
    """Whether a quote has enough words to say something."""
    return sum(word.weight for word in split_words(quote)) >= _MIN_QUOTE


def drop_numbers(text: str) -> str:
    """A text without the numbers of passages in it, like [1]."""
    return _SPACED_NUMBER.sub("", text)


def split_words(text: str) -> list[_Word]:
    """The words of a text, in scripts without spaces its characters."""
    # Targets of Markdown links are not read, but keep their place.
    visible = _LINK_TARGET.sub(lambda match: " " * len(match[0]), text)
    words: list[_Word] = []
    letters: list[str] = []
    start = stop = 0

    def end_word() -> None:
        if letters:
            form = unicodedata.normalize("NFKC", "".join(letters)).casefold()
            words.append(_Word(form, start, stop))
            letters.clear()

    for at, character in enumerate(visible):
        if _IGNORED.match(character):
            continue
        if unicodedata.combining(character) and letters:
            letters.append(character)
            stop = at + 1
        elif UNSPACED.match(character):
            joins = unicodedata.category(character).startswith("M") or _JOINING_JAMO.match(
                character
            )
            if not (joins and letters):
                end_word()
                start = at
            letters.append(character)
            stop = at + 1
        elif character.isalnum():
            if letters and UNSPACED.match(letters[0]):
                end_word()
            if not letters:
                start = at
            letters.append(character)
            stop = at + 1
        else:
            end_word()
    end_word()
    return words


def _longest_common_run(answer: Sequence[_Word], passage: str) -> tuple[float, tuple[int, int]]:
    """Weight of the longest run of words both have, and its characters in the passage."""
    words = split_words(passage)
    matcher = difflib.SequenceMatcher(
        None, [word.form for word in answer], [word.form for word in words], autojunk=False
    )
    match = matcher.find_longest_match()
    if not match.size:
        return 0.0, (0, 0)
    run = words[match.b : match.b + match.size]
    return sum(word.weight for word in run), (run[0].start, run[-1].stop)
