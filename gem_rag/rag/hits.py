"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass

from gem_rag.documents.document import Chunk


@dataclass(frozen=True)
class Hit:
    """A chunk that a search returned.

    Attributes:
        chunk: The chunk.
        score: Its cosine with the question.
    """

    chunk: Chunk
    score: float
