"""What adapters for retrieval share: blank texts, documents that are found by their chunks, vectors
that come with texts, reranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gem_rag.core.arrays import FloatArray
from gem_rag.errors import InputError
from gem_rag.model import Gem

if TYPE_CHECKING:
    from gem_rag.rag.index import Index
    from gem_rag.rag.reading import Reading

_SAME = 0.99  # cosine of one text's vectors, in other precisions or on other engines


def embed_with_blanks(
    gem: Gem, role: Literal["query", "document"], texts: Sequence[str], **settings: Any
) -> FloatArray:
    """Embed texts, of which one without a letter does not fail the others.

    Args:
        gem: The model.
        role: Of all texts.
        texts: A blank one has the vector of a space.
        **settings: Of `Gem.embed_queries` or `Gem.embed_documents`.

    Returns:
        Unit vectors in the order of the texts: float32 [n, dim].

    Raises:
        InputError: As those.
    """
    is_query = role == "query"
    embed = gem.embed_queries if is_query else gem.embed_documents
    blank = [
        place for place, text in enumerate(texts) if isinstance(text, str) and not text.strip()
    ]
    if not blank:
        return embed(texts, **settings)
    tokenize = gem.tokenize_query if is_query else gem.tokenize_document
    vectors = np.empty((len(texts), gem.dim), dtype=np.float32)
    vectors[blank] = gem.embed_tokens([tokenize(" ")])
    others = [place for place in range(len(texts)) if place not in set(blank)]
    if others:
        vectors[others] = embed([texts[place] for place in others], **settings)
    return vectors


def best_first(gem: Gem, question: str, passages: Sequence[str]) -> list[int]:
    """The places of passages, which are given best first, in a better order: see
    `gem_rag.rag.reranking.rerank`."""
    from gem_rag.rag.reranking import best_first

    return best_first(gem, question, passages) if passages else []


def best_documents(
    index: Index, question: str, k: int, vector: Sequence[float] | None = None, **settings: Any
) -> list[tuple[str, float]]:
    """The documents nearest to a question, each found by its best chunk.

    Args:
        index: Where to search; an empty one has none.
        question: What to look for; empty to search by a vector alone.
        k: How many documents.
        vector: Of the question, by the index's model; default what it makes of it.
        **settings: Of `Index.search`.

    Returns:
        Sources and cosines, best first.

    Raises:
        InputError: As `Index.search`, or the vector is of another model.
    """
    vectors = None if vector is None else _unit(vector)[None]
    best: dict[str, float] = {}
    depth, total = k, len(index)
    while total:
        [hits] = index.search_many([question], depth, vectors=vectors, **settings)
        for hit in hits:
            best.setdefault(hit.chunk.source, hit.score)
        if len(best) >= k or len(hits) < depth or depth >= total:
            break
        depth = min(2 * depth, total)  # several chunks may be of one document
    return list(best.items())[:k]


class GivenVectors:
    """Embeds for `Index.sync` with vectors that came with the texts; others are the model's own.

    Args:
        gem: The index's model.
        vectors: By text: of a chunk that is that text, and nothing else.

    Raises:
        InputError: The vectors are of another model, by that of the shortest text.
    """

    shard = 2_048

    def __init__(self, gem: Gem, vectors: Mapping[str, Sequence[float]]) -> None:
        self._gem = gem
        self._vectors = {text: _unit(vector) for text, vector in vectors.items()}
        text = min(vectors, key=len)  # cheapest to embed, and least likely to be truncated
        own, given = embed_with_blanks(gem, "document", [text])[0], self._vectors[text]
        if given.shape != own.shape or given @ own < _SAME:
            raise InputError(
                f"the vector given for {text[:40]!r} is not that of {gem.name!r}, with which the "
                "index embeds: give vectors of that model, or none"
            )

    def embed(self, readings: Sequence[Reading]) -> FloatArray:
        """Vectors of passages, as given or by the model: float32 [n, dim]."""
        from gem_rag.rag.reading import embed_readings

        vectors = np.empty((len(readings), self._gem.dim), dtype=np.float32)
        others = []
        for place, reading in enumerate(readings):
            given = None if reading.start else self._vectors.get(reading.text)
            if given is None:
                others.append(place)
            else:
                vectors[place] = given
        if others:
            vectors[others] = embed_readings(self._gem, [readings[place] for place in others])
        return vectors


def _unit(vector: Sequence[float]) -> FloatArray:
    array = np.asarray(vector, dtype=np.float32)
    return array / max(float(np.linalg.norm(array)), 1e-9)
