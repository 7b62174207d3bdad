"""Training pairs with hard negatives for the embeddings.

A pair is a docstring's summary and the rest of it, a section's title and its text, or a question
and the passage that answers it. Hard negatives of summaries and titles are documents that BM25
retrieves for them; those of questions are the other passages of the row, which are from the same
module or have similar names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gem_rag.evaluation.baselines import bm25_hits
from gem_tiny.docstring_pairs import deduplication_keys, split_summary
from gem_tiny.question_rows import QuestionRow
from gem_tiny.texts import Text

_NEGATIVES = 2
_BM25_HITS = 12  # candidates for the negatives of a query
_MIN_LETTERS = 40  # of a document
_MAX_CHARACTERS = 1200  # of a document: more than the model reads at once in training
_MAX_OVERLAP = 0.6  # share of common words above which a document may be relevant, too

RetrievalPair = Mapping[str, Any]  # "query", "document" and a list of "negatives"


def extract_summary_pairs(texts: Iterable[Text]) -> Iterator[tuple[str, str]]:
    """Pair the summary of each docstring with the rest of it, without duplicates."""
    parts = (split_summary(text.text) for text in texts if text.kind == "docstring")
    return _deduplicate(pair for pair in parts if pair)


def extract_title_pairs(texts: Iterable[Text]) -> Iterator[tuple[str, str]]:
    """Pair the title of each section of documentation with its text, without duplicates."""
    return _deduplicate((text.title, text.text) for text in texts if text.kind == "section")


def make_question_pairs(rows: Iterable[QuestionRow]) -> Iterator[RetrievalPair]:
    """Pair each question with the passage that answers it; the others are the negatives."""
    for row in rows:
        if row.number and len(row.passages) > 1:
            others = [p for n, p in enumerate(row.passages, start=1) if n != row.number]
            yield {
                "query": row.question,
                "document": row.passages[row.number - 1],
                "negatives": (others * _NEGATIVES)[:_NEGATIVES],
            }


def mine_hard_negatives(pairs: Sequence[tuple[str, str]]) -> Iterator[RetrievalPair]:
    """Add negatives that BM25 retrieves for each query and that differ from its document."""
    documents = [document for _, document in pairs]
    words = [frozenset(document.lower().split()) for document in documents]
    hits, _ = bm25_hits([query for query, _ in pairs], documents, _BM25_HITS)
    for index, (query, document) in enumerate(pairs):
        negatives = [int(i) for i in hits[index] if not _overlap(words[index], words[i])]
        # Random ones, should BM25 have too few.
        random = np.random.default_rng(index)
        negatives += [int(i) for i in random.integers(len(pairs), size=_NEGATIVES)]
        yield {
            "query": query,
            "document": document,
            "negatives": [documents[i] for i in negatives[:_NEGATIVES]],
        }


def _deduplicate(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Drop short documents, and what would be a false negative of an earlier pair."""
    seen: set[str] = set()
    for query, document in pairs:
        keys = deduplication_keys(query, document)
        if query and sum(map(str.isalpha, document)) >= _MIN_LETTERS and seen.isdisjoint(keys):
            seen |= keys
            yield query, document[:_MAX_CHARACTERS]


def _overlap(words: frozenset[str], others: frozenset[str]) -> bool:
    return len(words & others) >= _MAX_OVERLAP * min(len(words), len(others))
