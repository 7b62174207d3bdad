"""Three tools, and questions for them: what both examples of agents use."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from gem_rag import Document, Gem, Index

PAGES = ("lambda", "yield", "try", "with", "assert", "break")
QUESTIONS = (
    "What is 2 plus 3?",
    "How many letters are in the word retrieval?",
    "What does Python's reference say about the yield statement?",
)
INSTRUCTIONS = "Use the tools where they help, and answer briefly from what they return."


def make_tools(gem: Gem) -> list[Callable[..., Any]]:
    """Arithmetic, letters, and a search of some pages of Python's reference by the same model."""
    index = Index.open(Path(tempfile.mkdtemp()) / "index", gem)
    index.sync([Document(name, topics[name], title=name, kind="rst") for name in PAGES])

    def add(first: int, second: int) -> int:
        """Add two numbers."""
        return first + second

    def count_letters(word: str) -> int:
        """Count the letters of a word."""
        return sum(map(str.isalpha, word))

    def search_reference(query: str) -> str:
        """Search Python's language reference."""
        hits = index.search(query, 1) if query.strip() else []
        return hits[0].chunk.passage[:400] if hits else "Nothing was found."

    return [add, count_letters, search_reference]
