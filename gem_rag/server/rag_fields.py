"""Fields of requests to indexes, and what responses say of passages and citations."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from pydantic import Field

from gem_rag.core.config import AnswerStyle
from gem_rag.rag.citations import Citation
from gem_rag.rag.hits import Hit
from gem_rag.rag.search import DEFAULT_RANKING, Ranking, SearchOptions
from gem_rag.server.bodies import Part

Value = str | int | float | bool
Condition = Value | list[Value] | dict[str, Value | list[Value]]
_MOST_HITS = 1000


class SearchFields(Part):
    """How to search, as `Index.search` has it."""

    k: int = Field(default=5, ge=1, le=_MOST_HITS)
    ranking: Ranking = DEFAULT_RANKING
    sources: list[str] = Field(default_factory=list)
    where: dict[str, Condition] = Field(default_factory=dict)
    min_score: float | None = None
    diversity: float = 0.0
    reranked: int = Field(default=0, ge=0, le=_MOST_HITS)

    @property
    def search_options(self) -> SearchOptions:
        """Keyword arguments of `Index.search`, without k."""
        options: Any = {name: getattr(self, name) for name in SearchOptions.__annotations__}
        return options


class RagFields(SearchFields):
    """How to answer from an index, as `Index.ask` has it."""

    style: AnswerStyle | None = None
    margin: float | None = None


def hit_fields(hit: Hit) -> dict[str, Any]:
    """A passage that was found."""
    chunk = hit.chunk
    return {
        "source": chunk.source,
        "title": chunk.title,
        "text": chunk.text,
        "span": list(chunk.span),
        "place": hit.place,
        "score": round(float(hit.score), 6),
        "metadata": dict(hit.metadata),
    }


def citation_fields(citation: Citation) -> dict[str, Any]:
    """A citation."""
    return {
        "number": citation.number,
        "source": citation.source,
        "span": list(citation.span),
        "quote": citation.quote,
        "place": citation.place,
    }


def annotation(citation: Citation, index: str, text: str, base_url: str) -> dict[str, Any]:
    """A citation as OpenAI's annotation of a message: the address of the page that shows it, and
    the characters of the answer that it stands behind."""
    start, stop = citation.span
    place = urlencode({"index": index, "source": citation.source, "start": start, "stop": stop})
    marker = f"[{citation.number}]"
    at = text.find(marker)
    where = (0, len(text)) if at < 0 else (at, at + len(marker))
    title = f"{citation.source}, {citation.place}" if citation.place else citation.source
    return {
        "type": "url_citation",
        "url_citation": {
            "url": f"{base_url.rstrip('/')}/?{place}",
            "title": title,
            "start_index": where[0],
            "end_index": where[1],
        },
        "file_citation": citation_fields(citation),
    }
