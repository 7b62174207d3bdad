"""Answers made of passages' own sentences: those whose vectors are nearest to the question's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from gem_rag.documents.document import Chunk
from gem_rag.model import Gem
from gem_rag.rag.citations import Citation, cite_span, says_enough
from gem_rag.rag.sentences import is_complete, passage_sentences

MOST = 3  # sentences in an answer
_DROP = 0.1  # a sentence this much farther from the question than the best one is left out


def extract_sentences(gem: Gem, question: str, chunks: Sequence[Chunk]) -> list[Citation]:
    """Choose the sentences that answer a question.

    Each sentence is embedded below its passage's title, as a passage is.

    Args:
        gem: The model.
        question: The question.
        chunks: The passages, in the order of their numbers.

    Returns:
        Up to three sentences, the best first; no two of the same words.
    """
    sentences = list(_sentences(chunks))
    if not sentences:
        return []
    texts = [
        dataclasses.replace(chunks[one.number - 1], text=quoted(one)).passage for one in sentences
    ]
    [query] = gem.embed_queries([question])
    scores = gem.embed_documents(texts) @ query
    chosen: dict[str, Citation] = {}
    for place in np.argsort(-scores, kind="stable"):
        if scores[place] < scores.max() - _DROP or len(chosen) == MOST:
            break
        chosen.setdefault(quoted(sentences[place]), sentences[place])
    return list(chosen.values())


def quoted(citation: Citation) -> str:
    """A citation's words on one line."""
    return " ".join(citation.quote.split())


def _sentences(chunks: Sequence[Chunk]) -> Iterator[Citation]:
    """The sentences of all passages that say enough: complete ones, or of a passage that has none
    what else says enough, like rows and lines of code, or all."""
    for number, chunk in enumerate(chunks, start=1):
        found = [cite_span(number, chunk, *span) for span in passage_sentences(chunk.text)]
        enough = [one for one in found if says_enough(one.quote)]
        yield from [one for one in enough if is_complete(one.quote)] or enough or found
