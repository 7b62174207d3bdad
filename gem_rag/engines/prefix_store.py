"""`PrefixStore`: a prefix cache of keys and values, in memory and then on disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gem_rag.engines.prefix_files import PrefixFiles
from gem_rag.engines.prefix_index import PrefixIndex, common_length, digest_of
from gem_rag.engines.prefixes import Prefix

# Tokens: of fewer nothing is kept, looked up or gone on from. A pass over so few takes about as
# long as one over a single token, for all of the weights are read either way.
LEAST_TOKENS = 64


class PrefixStore:
    """What has been read, for as long as there is room; safe to use from many threads.

    Args:
        max_bytes: Of keys and values in memory; those used least recently make room.
        device: Where the model runs.
        overflow: Gets what memory has no room for any more, if given.

    Attributes:
        num_bytes: Of keys and values in memory.
    """

    def __init__(self, max_bytes: int, device: Any, overflow: PrefixFiles | None = None) -> None:
        self.num_bytes = 0
        self._max_bytes, self._device, self._overflow = max_bytes, device, overflow
        self._files = {overflow.folder: overflow} if overflow else {}
        self._prefixes: OrderedDict[str, Prefix] = OrderedDict()  # used last, last
        self._index: PrefixIndex[str] = PrefixIndex()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """How many are in memory."""
        return len(self._prefixes)

    def use_files(self, files: PrefixFiles) -> None:
        """Look for prefixes in a folder too; nothing is written there."""
        with self._lock:
            self._files.setdefault(files.folder, files)

    def uses(self, folder: Path) -> bool:
        """Whether prefixes are looked for in a folder."""
        return folder in self._files

    def longest(self, ids: Sequence[int]) -> tuple[Prefix | None, int]:
        """What has been read of the first tokens of a text, at least one of which is left to read.

        Args:
            ids: The text's tokens.

        Returns:
            The prefix that shares most of them, and how many; None and 0 if it is too few to be
            worth it.
        """
        if len(ids) <= LEAST_TOKENS:
            return None, 0
        ids = ids[:-1]
        with self._lock:
            key, length = self._index.longest(ids)
            for files in self._files.values():
                key, length = self._read(files, ids, key, length)
            if key is None or length < LEAST_TOKENS:
                return None, 0
            self._prefixes.move_to_end(key)
            return self._prefixes[key], length

    def add(self, prefix: Prefix) -> None:
        """Keep a prefix, unless little of it is new."""
        if len(prefix.ids) < LEAST_TOKENS:
            return
        with self._lock:
            key, length = self._index.longest(prefix.ids)
            if key is not None:
                self._prefixes.move_to_end(key)
                if len(prefix.ids) - length < LEAST_TOKENS:
                    return
                if length == len(self._prefixes[key].ids):  # all of it is in the new one
                    self._drop(key)
            self._put(prefix)

    def clear(self) -> None:
        """Free the memory."""
        with self._lock:
            for key in list(self._prefixes):
                self._drop(key)

    def _read(
        self, files: PrefixFiles, ids: Sequence[int], key: str | None, length: int
    ) -> tuple[str | None, int]:
        """The key of what shares most tokens, in memory or these files, and how many."""
        name, promised = files.longest(ids)
        if name is None or promised < length + LEAST_TOKENS:
            return key, length
        prefix = files.read(name)
        if prefix is None:
            return key, length
        found = common_length(prefix.ids, ids)
        if found <= length or not (own := self._put(prefix.to(self._device))):
            return key, length
        return own, found

    def _put(self, prefix: Prefix) -> str | None:
        """Keep a prefix in memory under a key, if that has room."""
        if prefix.num_bytes > self._max_bytes:
            return None
        key = digest_of(prefix.ids)
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return key
        while self.num_bytes + prefix.num_bytes > self._max_bytes:
            dropped = self._drop(next(iter(self._prefixes)))
            if self._overflow is not None:
                self._overflow.write(dropped)
        self._prefixes[key] = prefix
        self._index.add(key, prefix.ids)
        self.num_bytes += prefix.num_bytes
        return key

    def _drop(self, key: str) -> Prefix:
        prefix = self._prefixes.pop(key)
        self._index.remove(key)
        self.num_bytes -= prefix.num_bytes
        return prefix
