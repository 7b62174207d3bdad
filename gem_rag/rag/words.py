"""Search by words in SQLite's full-text index (FTS5): what is put into it, and what is asked."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

# Scripts that put no spaces between words: each character is a word.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7a3\u1100-\u11ff\U00020000-\U0003ffff]"
)
# Lucene's. They are in nearly every English text, so they cost much and tell little.
_STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it",
    "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they",
    "this", "to", "was", "will", "with",
})  # fmt: skip

_LEAST_RARITY = 0.1


def separate_words(text: str) -> str:
    """The text, with spaces around each character of a script that has none."""
    text = text.replace("\0", " ")  # ends a text in SQLite
    return text if text.isascii() else UNSPACED.sub(r" \g<0> ", text)


def question_words(question: str) -> list[str]:
    """The words of a question that tell something, each once."""
    letters = separate_words(question.lower())
    # Letters, their marks and digits, as the index's own words.
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in letters).split()
    return [word for word in dict.fromkeys(words) if word not in _STOP_WORDS]


def match_any(words: Iterable[str]) -> str:
    """A query for texts that have some of the words."""
    return " OR ".join(f'"{word}"' for word in words)


def rarity(texts: int, holding: int) -> float:
    """How much a word tells that so many of the texts hold: its inverse document frequency, as in
    FTS5's BM25, but more than nothing for what most of them hold."""
    return max(math.log((texts - holding + 0.5) / (holding + 0.5)), _LEAST_RARITY)
