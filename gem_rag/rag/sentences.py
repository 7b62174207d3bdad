"""Sentences of texts, by Unicode's rules (UAX #29)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from uniseg.sentencebreak import SentenceBreak, sentence_boundaries, sentence_break

_LONGEST = 600  # characters; what is longer has no full stops, like a log, and lines are its parts
_MARKUP = "*_`"
_RULE = r"[ \t]*([=*~^\-_\"`+:.#])\1{2,}[ \t]*$"
# Lines that belong to nothing before them: items, headings, quotations, rows and rules.
_BEGINS = re.compile(rf"[ \t]*(?:[-*+•][ \t]|\(?\d{{1,3}}[.)][ \t]|[#>|])|{_RULE}")
_ENDS = re.compile(rf"[ \t]*[#|]|{_RULE}")  # and to nothing after them


def split_sentences(text: str) -> Iterator[tuple[int, int]]:
    """[start, stop) characters of a text's sentences; a line's end ends one.

    Unicode's rules also end one at the mark in `self.__name__` or `"!="`: what no space follows
    ends none, but in scripts that put none between sentences.
    """
    ends = (end for end in sentence_boundaries(text) if _is_end(text, end))
    return pairwise(ends)


def _is_end(text: str, end: int) -> bool:
    before = text[end - 1 : end]
    return end in (0, len(text)) or before.isspace() or not before.isascii()


def passage_sentences(text: str) -> Iterator[tuple[int, int]]:
    """[start, stop) characters of the sentences of a document's text, without space around them.

    A line's end within a paragraph is none of a sentence's: most plain text is wrapped.
    """
    for start, stop in split_sentences(_unwrap(text)):
        ends = [stop]
        if stop - start > _LONGEST:
            ends = [start + end.end() for end in re.finditer("\n", text[start:stop])] + ends
        for first, last in pairwise([start, *ends]):
            if part := text[first:last].strip():
                first += text[first:last].index(part)
                yield first, first + len(part)


def is_complete(sentence: str) -> bool:
    """Whether a sentence ends with a full stop or the like, whatever marks close it."""
    last = (kind for c in reversed(sentence) if c not in _MARKUP
            if (kind := sentence_break(c)) is not SentenceBreak.CLOSE)  # fmt: skip
    return next(last, None) in (SentenceBreak.ATERM, SentenceBreak.STERM)


def _unwrap(text: str) -> str:
    """A text of the same length, with spaces where a line ends within a paragraph."""
    parts = []
    for line, after in pairwise([*text.splitlines(keepends=True), ""]):
        body = line.rstrip("\r\n")
        joined = body.strip() and after.strip() and not (_ENDS.match(body) or _BEGINS.match(after))
        parts.append(body.ljust(len(line)) if joined else line)
    return "".join(parts)
