"""What a search returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gem_rag.documents.document import Chunk, MetadataValue


@dataclass(frozen=True)
class Hit:
    """A chunk that a search returned.

    Attributes:
        chunk: The chunk.
        score: Its cosine with the question.
        place: Where in the document's file it begins: "page 3", "slide 2", "Costs, row 17",
            "cell 4", "line 120", or nothing where the file has none of these.
        metadata: Of the document.
    """

    chunk: Chunk
    score: float
    place: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict, compare=False)
