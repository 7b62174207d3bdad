"""Which sentences of an answer its passages support, by the words they share.

Words that most sentences of the passages have ("the", "is") weigh little, and words that none has
weigh most, so no list of any language's function words is needed. A sentence with a number, or a
name with digits, that the passage does not have is not supported.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from uniseg.sentencebreak import sentence_boundaries

from gem_rag.documents.document import Chunk
from gem_rag.rag.citations import Citation, cite_span, split_words

_LEAST_SHARED = 0.7  # of a sentence's weight, in one passage
_STEM = 5  # characters: "evaluate" and "evaluated" are one word
_NUMBER = re.compile(r"\s*\[\d+\]")


@dataclass(frozen=True)
class CheckedSentence:
    """A sentence of an answer.

    Attributes:
        text: The sentence, without a passage's number.
        citation: The sentence of a passage that has most of its words; None if no passage supports
            it.
    """

    text: str
    citation: Citation | None


def check_sentences(text: str, chunks: Sequence[Chunk]) -> list[CheckedSentence]:
    """Check each sentence of an answer.

    Args:
        text: The answer. Passage numbers in it, like [1], are left out: the model may be wrong
            about them.
        chunks: The passages, in the order of their numbers.

    Returns:
        The answer's sentences in order. Those without words are left out.
    """
    passages = [_Passage.of(number, chunk) for number, chunk in enumerate(chunks, start=1)]
    sentences = [stems for passage in passages for _, stems in passage.sentences]
    counts = Counter(stem for stems in sentences for stem in stems)

    def weigh(stems: set[str]) -> float:
        return sum(math.log(1 + (len(sentences) + 1) / (counts[stem] + 1)) for stem in stems)

    checked = []
    written = _NUMBER.sub("", text)
    for start, stop in split_sentences(written):
        if stems := _stems(written[start:stop]):
            best = max(passages, key=lambda passage: weigh(stems & passage.stems), default=None)
            supports = best is not None and _supports(best, stems, weigh)
            citation = best.cite(stems, weigh) if best and supports else None
            checked.append(CheckedSentence(written[start:stop].strip(), citation))
    return checked


def split_sentences(text: str) -> Iterator[tuple[int, int]]:
    """[start, stop) characters of a text's sentences, by Unicode's rules (UAX #29)."""
    return pairwise(sentence_boundaries(text))


@dataclass(frozen=True)
class _Passage:
    """A passage's words; its sentences, as [start, stop) of the chunk's text, and their words."""

    number: int
    chunk: Chunk
    stems: set[str]
    sentences: list[tuple[tuple[int, int], set[str]]]

    @classmethod
    def of(cls, number: int, chunk: Chunk) -> _Passage:
        spans = split_sentences(chunk.text)
        sentences = [((start, stop), _stems(chunk.text[start:stop])) for start, stop in spans]
        return cls(number, chunk, _stems(chunk.passage), sentences)

    def cite(self, stems: set[str], weigh: Callable[[set[str]], float]) -> Citation:
        """The sentence that has most of some words."""
        (start, stop), _ = max(self.sentences, key=lambda sentence: weigh(stems & sentence[1]))
        quote = self.chunk.text[start:stop]
        start += len(quote) - len(quote.lstrip())
        return cite_span(self.number, self.chunk, start, start + len(quote.strip()))


def _supports(passage: _Passage, stems: set[str], weigh: Callable[[set[str]], float]) -> bool:
    missing = stems - passage.stems
    if any(character.isdigit() for stem in missing for character in stem):
        return False
    return weigh(stems - missing) >= _LEAST_SHARED * weigh(stems)


def _stems(text: str) -> set[str]:
    """Words cut to their first letters, those with digits whole."""
    forms = (word.form for word in split_words(text))
    return {form if any(map(str.isdigit, form)) else form[:_STEM] for form in forms}
