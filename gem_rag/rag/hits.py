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
        place: Where in the document's file it begins: "page 3", "slide 2", "Costs, row 17",
            "cell 4", "line 120", or nothing where the file has none of these.
    """

    chunk: Chunk
    score: float
    place: str = ""
