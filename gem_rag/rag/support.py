"""Which sentences of an answer its passages support, by the words they share.

Words that most sentences of the passages have ("the", "is") weigh little, and words that none has
weigh most, so no list of any language's function words is needed. A sentence with a number, or a
name with digits, that the passage does not have is not supported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gem_rag.documents.document import Chunk
from gem_rag.rag.citations import Citation, cite_span, drop_numbers, split_words
from gem_rag.rag.sentences import passage_sentences, split_sentences

_LEAST_SHARED = 0.7  # of a sentence's weight, in one passage
_STEM = 5  # characters: "evaluate" and "evaluated" are one word


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
    return list(SentenceChecker(chunks).check_pieces([text]))


class SentenceChecker:
    """Checks sentences against passages.

    Args:
        chunks: The passages, in the order of their numbers.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._passages = [_Passage.of(number, chunk) for number, chunk in enumerate(chunks, 1)]
        sentences = [stems for passage in self._passages for _, stems in passage.sentences]
        self._counts = Counter(stem for stems in sentences for stem in stems)
        self._total = len(sentences)

    def check_pieces(self, pieces: Iterable[str]) -> Iterator[CheckedSentence]:
        """Check a text as it is written.

        Args:
            pieces: The text, cut anywhere. Passage numbers in it are left out.

        Yields:
            The sentences, as for `check_sentences`; each when the next one has begun.
        """
        pending = ""
        for piece in pieces:
            sentences, pending = _split_complete(drop_numbers(pending + piece))
            yield from self._check(sentences)
        yield from self._check(pending[start:stop] for start, stop in split_sentences(pending))

    def _check(self, sentences: Iterable[str]) -> Iterator[CheckedSentence]:
        for sentence in sentences:
            if stems := _stems(sentence):
                yield CheckedSentence(sentence.strip(), self._cite(stems))

    def _cite(self, stems: set[str]) -> Citation | None:
        """Where the passage with most of some words supports them, if it does."""
        if not self._passages:
            return None
        passage = max(self._passages, key=lambda passage: self._weigh(stems & passage.stems))
        if not self._supports(passage, stems):
            return None
        span, _ = max(passage.sentences, key=lambda sentence: self._weigh(stems & sentence[1]))
        return passage.cite(span)

    def _supports(self, passage: _Passage, stems: set[str]) -> bool:
        missing = stems - passage.stems
        if any(character.isdigit() for stem in missing for character in stem):
            return False
        return self._weigh(stems - missing) >= _LEAST_SHARED * self._weigh(stems)

    def _weigh(self, stems: set[str]) -> float:
        return sum(math.log(1 + (self._total + 1) / (self._counts[stem] + 1)) for stem in stems)


def _split_complete(text: str) -> tuple[list[str], str]:
    """The sentences of a text that more text cannot change, and the rest of it.

    Whether a full stop ends a sentence may depend on the first letter after it ("approx. 3 m"), so
    what has no letter yet may still belong to the sentence before.
    """
    starts = [start for start, _ in split_sentences(text) if any(map(str.isalpha, text[start:]))]
    sentences = [text[start:stop] for start, stop in pairwise(starts)]
    return sentences, text[starts[-1] :] if starts else text


@dataclass(frozen=True)
class _Passage:
    """A passage's words; its sentences, as [start, stop) of the chunk's text, and their words."""

    number: int
    chunk: Chunk
    stems: set[str]
    sentences: list[tuple[tuple[int, int], set[str]]]

    @classmethod
    def of(cls, number: int, chunk: Chunk) -> _Passage:
        spans = passage_sentences(chunk.text)
        sentences = [((start, stop), _stems(chunk.text[start:stop])) for start, stop in spans]
        return cls(number, chunk, _stems(chunk.passage), sentences)

    def cite(self, span: tuple[int, int]) -> Citation:
        """A citation of one of the sentences."""
        return cite_span(self.number, self.chunk, *span)


def _stems(text: str) -> set[str]:
    """Words cut to their first letters, those with digits whole."""
    forms = (word.form for word in split_words(text))
    return {form if any(map(str.isdigit, form)) else form[:_STEM] for form in forms}
