"""Which of many token sequences shares the longest prefix with another."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import xxhash

from gem_rag.core.arrays import IntArray

BLOCK = 16  # tokens: prefixes that share no whole block are not found
_MOST_COMPARED = 64  # sequences with the same blocks, which differ in less than one block
K = TypeVar("K", bound=Hashable)


class PrefixIndex(Generic[K]):
    """Token sequences by the chained hashes of their blocks; found ones are compared id by id."""

    def __init__(self) -> None:
        self._ids: dict[K, IntArray] = {}
        self._by_blocks: dict[bytes, dict[K, None]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._ids

    def add(self, key: K, ids: Sequence[int] | IntArray) -> None:
        """Add a sequence under a new key."""
        self._ids[key] = np.asarray(ids, np.int64)
        for digest in block_digests(ids):
            self._by_blocks.setdefault(digest, {})[key] = None

    def remove(self, key: K) -> None:
        """Forget a sequence."""
        for digest in block_digests(self._ids.pop(key)):
            keys = self._by_blocks[digest]
            del keys[key]
            if not keys:
                del self._by_blocks[digest]

    def __iter__(self) -> Iterator[K]:
        """All keys."""
        return iter(list(self._ids))

    def longest(self, ids: Sequence[int]) -> tuple[K | None, int]:
        """The key of the sequence that shares most of the first tokens, and how many.

        Returns:
            None and 0 if no sequence shares a whole block.
        """
        wanted = np.asarray(ids, np.int64)
        for digest in reversed(list(block_digests(wanted))):
            if keys := self._by_blocks.get(digest):
                compared = itertools.islice(reversed(keys), _MOST_COMPARED)
                lengths = {key: common_length(self._ids[key], wanted) for key in compared}
                best = max(lengths, key=lengths.__getitem__)
                return best, lengths[best]
        return None, 0


def common_length(first: IntArray | Sequence[int], second: IntArray | Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(first), len(second))
    one, other = (np.asarray(ids[:length], np.int64) for ids in (first, second))
    differing = np.flatnonzero(one != other)
    return int(differing[0]) if differing.size else length


def block_digests(ids: Sequence[int] | IntArray) -> Iterator[bytes]:
    """A digest of everything up to the end of each whole block: 16 bytes each."""
    tokens = np.ascontiguousarray(ids, np.int64)
    digest = xxhash.xxh3_128()
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        digest.update(tokens[end - BLOCK : end].tobytes())
        yield digest.digest()


def digest_of(ids: Sequence[int]) -> str:
    """Identifies a whole sequence: 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(ids, np.int64).tobytes())
