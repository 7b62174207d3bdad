"""Answers that are quotes: how passages are quoted, and where the quotes are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from gem_rag.documents.document import Chunk
from gem_rag.rag.citations import Citation, cite_span

_NUMBER = re.compile(r" \[(\d+)\]")


def quotable(chunks: Sequence[Chunk]) -> list[str]:
    """The passages as they are quoted: on one line each."""
    return [" ".join(chunk.passage.split()) for chunk in chunks]


def cite_quotes(text: str, chunks: Sequence[Chunk]) -> list[Citation]:
    """Find the quotes that an answer consists of.

    Args:
        text: The answer, which the grammar of quotes has made.
        chunks: The passages, in the order of their numbers.

    Returns:
        Where each quote is, in the order of the answer.
    """
    quotes = _read_quotes(text, quotable(chunks))
    return [_cite_quote(number, chunks[number - 1], words) for number, words in quotes]


def _read_quotes(text: str, passages: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The numbers and words of quotes that stand one after another, like `words [1] words [2]`."""
    while text:
        for end in reversed(list(_NUMBER.finditer(text))):  # words may hold some [3] themselves
            number, words = int(end[1]), text[: end.start()]
            if 1 <= number <= len(passages) and words in passages[number - 1]:
                break
        else:  # cut by max_tokens before its number: the words are still one passage's
            holding = (n for n, passage in enumerate(passages, start=1) if text in passage)
            yield from ((number, text) for number in islice(holding, 1))
            return
        yield number, words
        text = text[end.end() :].lstrip()


def _cite_quote(number: int, chunk: Chunk, words: str) -> Citation:
    """Where a quote is in the chunk's text; the whole chunk for words of its title."""
    pattern = r"\s+".join(map(re.escape, words.split()))
    match = re.search(pattern, chunk.text)
    start, stop = match.span() if match else (0, len(chunk.text))
    return cite_span(number, chunk, start, stop)
