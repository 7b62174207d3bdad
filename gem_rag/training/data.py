"""Training rows: texts to token rows, and batches of them.

Knows nothing about models, losses or where texts come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch.utils.data import Dataset

from gem_rag.layout import Row
from gem_rag.tokens import TextEncoder


class PairBatch(TypedDict):
    """Rows of queries and, at the same place, of the documents that answer them."""

    queries: list[Row]
    documents: list[Row]


class PairDataset(Dataset[tuple[Row, Row]]):
    """(query, document) texts, tokenised once and cut to a length.

    pairs: texts, with the model's prompts already before them.
    encoder: turns text into ids.
    query_tokens, document_tokens: most tokens kept of each.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        encoder: TextEncoder,
        query_tokens: int,
        document_tokens: int,
    ) -> None:
        queries = encoder.encode([query for query, _ in pairs])
        documents = encoder.encode([document for _, document in pairs])
        self._rows = [
            (Row.whole(q.ids[:query_tokens]), Row.whole(d.ids[:document_tokens]))
            for q, d in zip(queries, documents, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Row, Row]:
        return self._rows[index]


def collate_pairs(rows: Sequence[tuple[Row, Row]]) -> PairBatch:
    """Rows side by side; the model places them, so nothing is padded here."""
    return {"queries": [q for q, _ in rows], "documents": [d for _, d in rows]}
