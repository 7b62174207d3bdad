"""Keys and values of the most asked documents, kept beside an index: an answer whose first passage
is one of theirs goes on from them.

Under the attention rule a text's keys and values are the same in its embedding and in an answer
that begins with the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def most_asked(commit: Commit, asked: Sequence[str], count: int) -> dict[str, list[str]]:
    """The passages of so many documents by source.

    Args:
        commit: What the index holds.
        asked: Sources, the most asked first; documents that nobody has asked for come after them.
        count: How many documents.
    """
    sources = commit.sources()
    there = set(sources)
    ordered = dict.fromkeys([*(source for source in asked if source in there), *sources])
    return {source: commit.passages(source) for source in list(ordered)[:count]}


def keep_prefill(
    folder: Path, gem: Gem, passages: Mapping[str, Sequence[str]], max_bytes: int
) -> KeptPrefill:
    """Keep keys and values of passages; what was kept of others is removed.

    Args:
        folder: The index's.
        gem: Its model.
        passages: By source, what matters most first.
        max_bytes: Of all files.

    Raises:
        InputError: The model's engine keeps none, or its answers have no head.
    """
    prompts = [gem.answer_prefix(passage) for own in passages.values() for passage in own]
    target = folder / FOLDER
    kept = gem.keep_prefixes(prompts, target, max_bytes)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return KeptPrefill(list(passages), len(prompts), kept, size)
