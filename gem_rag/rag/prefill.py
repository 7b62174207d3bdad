"""Keys and values of the most asked documents, kept beside an index: an answer whose first passage
is one of theirs goes on from them.

Under the attention rule a text's keys and values are the same in its embedding and in an answer
that begins with the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gem_rag.model import Gem
from gem_rag.rag.commit import Commit

FOLDER = "prefill"
MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class KeptPrefill:
    """What is kept of the most asked documents.

    Attributes:
        documents: Their sources, the most asked first.
        chunks: How many chunks they have.
        kept: Of how many of those there are keys and values: short ones need none, and the last
            have none where there was no room.
        bytes: What they take on disk.
    """

    documents: list[str]
    chunks: int
    kept: int
    bytes: int


def keep_prefill(
    folder: Path, gem: Gem, commit: Commit, asked: Sequence[str], count: int, max_bytes: int
) -> KeptPrefill:
    """Keep keys and values of so many documents; what was kept of others is removed.

    Args:
        folder: The index's.
        gem: Its model.
        commit: What it holds.
        asked: Sources, the most asked first.
        count: How many documents.
        max_bytes: Of all files.

    Raises:
        InputError: The model's engine keeps none, or its answers have no head.
    """
    sources = _ordered(asked, commit.sources())[:count]
    passages = [passage for source in sources for passage in commit.passages(source)]
    prompts = [gem.answer_prefix(passage) for passage in passages]
    target = folder / FOLDER
    kept = gem.keep_prefixes(prompts, target, max_bytes)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return KeptPrefill(sources, len(passages), kept, size)


def _ordered(asked: Sequence[str], sources: Sequence[str]) -> list[str]:
    """All sources, those asked for first."""
    there = set(sources)
    return list(dict.fromkeys([*(source for source in asked if source in there), *sources]))
