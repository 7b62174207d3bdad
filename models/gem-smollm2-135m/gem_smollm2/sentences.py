"""Pairs from prose alone: a sentence finds the section that it was taken out of (the inverse cloze
task, arXiv 1906.00300)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from random import Random

from gem_tiny.texts import Text

from gem_rag.pairs.pair import Pair

_SENTENCE = re.compile(r"[A-Z][^.!?\n]*(?:[.!?](?=\s)|\n(?=[^\n])[^.!?\n]*)+")
_WORDS = (6, 30)  # of a sentence
_KEPT = 0.1  # of the sentences stay in their section: sometimes words are to be found again
_MAX_CHARACTERS = 900
_MIN_CHARACTERS = 200


def sentence_pairs(texts: Iterable[Text], seed: int = 0) -> Iterator[Pair]:
    """One pair for each text that is long enough.

    Args:
        texts: Documentation and docstrings.
        seed: Of which sentence is drawn.
    """
    random = Random(seed)
    for text in texts:
        found = [m for m in _SENTENCE.finditer(text.text) if _is_prose(m.group())]
        if len(found) < 2 or len(text.text) < _MIN_CHARACTERS:
            continue
        chosen = random.choice(found)
        sentence = " ".join(chosen.group().split())
        rest = text.text
        if random.random() >= _KEPT:
            rest = text.text[: chosen.start()] + text.text[chosen.end() :]
        start = max(0, chosen.start() - _MAX_CHARACTERS // 2)  # around where it was
        start = text.text.rfind("\n", 0, start) + 1
        document = f"{text.title}\n{rest[start : start + _MAX_CHARACTERS].strip()}"
        yield Pair(sentence, document, "sentence", text.source, text.title)


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    letters = sum(map(str.isalpha, sentence))
    return _WORDS[0] <= len(words) <= _WORDS[1] and letters > 0.7 * len(sentence)
