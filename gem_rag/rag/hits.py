"""What a search finds."""

from __future__ import annotations

from dataclasses import dataclass

from gem_rag.documents.document import Chunk


@dataclass(frozen=True)
class Hit:
    """A chunk found, and the cosine between it and the question."""

    chunk: Chunk
    score: float
