"""The prefix cache of one loaded model: its store, the folders it reads, and what fills them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers

from gem_rag.core.config import is_whole
from gem_rag.engines.decoding import forward, pad_left
from gem_rag.engines.prefix_files import PrefixFiles
from gem_rag.engines.prefix_store import LEAST_TOKENS, PrefixStore
from gem_rag.engines.prefixes import Prefix, filled_cache, prefix_of_row
from gem_rag.errors import InputError

DEFAULT_MEMORY = 512 << 20
DEFAULT_DISK = 4 << 30


class PrefixCache:
    """Keeps and finds the keys and values of a model's prompts.

    Args:
        fingerprint: Gives the checkpoint's, which takes as long as reading it.
        dtype: What the model computes in.
        device: Where it runs.
        memory: Bytes that keys and values may take in memory.
        folder: Gets what memory has no room for, if given.
        disk: Bytes of that folder.

    Attributes:
        store: What is in memory, and finds what is on disk.

    Raises:
        InputError: A number of bytes is negative, or no whole number.
    """

    def __init__(
        self,
        fingerprint: Callable[[], str],
        dtype: str,
        device: torch.device,
        memory: int,
        folder: str | Path | None,
        disk: int,
    ) -> None:
        for name, count in {"memory": memory, "disk": disk}.items():
            if not is_whole(count) or count < 0:
                raise InputError(
                    f"the prefix cache's {name} must be a number of bytes from 0, not {count!r}"
                )
        self._fingerprint, self._dtype, self._device = fingerprint, dtype, device
        overflow = self.files(Path(folder).expanduser().absolute(), disk) if folder else None
        self.store = PrefixStore(memory, device, overflow)

    @cached_property
    def identity(self) -> str:
        """32 hexadecimal digits of what keys and values depend on, rounding included."""
        versions = torch.__version__, transformers.__version__
        state = [self._fingerprint(), self._dtype, self._device.type, *versions]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]

    def files(self, folder: Path, max_bytes: int = DEFAULT_DISK) -> PrefixFiles:
        """This model's prefixes in a folder."""
        return PrefixFiles(folder, self.identity, max_bytes)

    def use(self, folder: Path) -> None:
        """Look for prefixes in a folder too."""
        if not self.store.uses(folder):
            self.store.use_files(self.files(folder))

    def fill(
        self,
        model: Callable[[], Any],
        prompts: Sequence[Sequence[int]],
        files: PrefixFiles,
        *,
        budget: int,
        pad: int,
        turn: AbstractContextManager[None],
    ) -> int:
        """Read prompts, and write their keys and values to files, for as long as there is room.

        What else is in the folder is removed, and what matters less than what has no room.

        Args:
            model: Gives the language model.
            prompts: Token ids, what matters most first; too short ones are left out.
            files: Where to.
            budget: The most positions in a batch.
            pad: Token id of padding.
            turn: Held while the model runs, for a batch at a time.

        Returns:
            Of how many prompts there are files now.
        """
        different = dict.fromkeys(map(tuple, prompts))
        wanted = [ids for ids in different if len(ids) >= LEAST_TOKENS]
        files.keep_only(wanted)
        missing = [(place, ids) for place, ids in enumerate(wanted) if not files.has(ids)]
        for batch in _batches(missing, budget):
            with turn, torch.inference_mode():
                prefixes = read_prefixes(model(), [ids for _, ids in batch], pad)
            less_wanted = (wanted[place + 1 :] for place, _ in batch)
            if not all(map(partial(_write, files), prefixes, less_wanted)):
                break
        return sum(map(files.has, wanted))


def _write(files: PrefixFiles, prefix: Prefix, less_wanted: Sequence[Sequence[int]]) -> bool:
    """Write a prefix, in the place of what is less wanted if there is no room; whether it is there
    now."""
    while not files.write(prefix, evict=False):
        last = next(filter(files.has, reversed(less_wanted)), None)
        if last is None or files.failed or prefix.num_bytes > files.max_bytes:
            return False
        files.remove(last)
    return True


def read_prefixes(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> list[Prefix]:
    """The keys and values of prompts, which are read in one pass."""
    ids, mask = pad_left(prompts, pad, model.device)
    cache = filled_cache([], 0)
    forward(model, ids, mask, cache)
    width = ids.shape[1]
    return [
        prefix_of_row(cache, row, width - len(prompt), prompt) for row, prompt in enumerate(prompts)
    ]


def _batches(
    prompts: Sequence[tuple[int, tuple[int, ...]]], budget: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Numbered prompts in their order, as many together as fill a batch, padded to the longest."""
    batch: list[tuple[int, tuple[int, ...]]] = []
    for numbered in prompts:
        longest = max(len(ids) for _, ids in [*batch, numbered])
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(numbered)
    if batch:
        yield batch
