"""Prefixes on disk: safetensors files in a folder that several processes may share.

A file's name says which model and tokens it is of, and has the checksum of all its bytes. It
appears whole or not at all, and what does not match its name is never used.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from gem_rag._utils.files import create_file, publish
from gem_rag.engines.prefix_index import PrefixIndex, digest_of
from gem_rag.engines.prefixes import Prefix

_SUFFIX = ".safetensors"
_LOCK_SECONDS = 10.0  # for another process that is writing


class PrefixFiles:
    """The prefixes of one model in a folder; safe to use from many threads and processes.

    Args:
        folder: Where they are; made when the first is written.
        identity: 32 hexadecimal digits of what computed them.
        max_bytes: Of all files in the folder; those used least recently make room.

    Attributes:
        failed: Whether the disk has failed or was full, so that nothing is written any more.
    """

    def __init__(self, folder: Path, identity: str, max_bytes: int) -> None:
        self.folder, self.identity, self.max_bytes = folder, identity, max_bytes
        self._index: PrefixIndex[str] = PrefixIndex()
        self._names: dict[str, str] = {}  # by the digest of their tokens
        self._seen: int | None = None  # when the folder had last changed
        self.failed = False
        self._lock = threading.RLock()

    def longest(self, ids: Sequence[int]) -> tuple[str | None, int]:
        """As `PrefixIndex.longest`, by the names of files, which have yet to be verified."""
        with self._lock:
            self._look()
            return self._index.longest(ids)

    def read(self, name: str) -> Prefix | None:
        """A file's prefix, on the CPU; None if the file is gone or damaged. A damaged one is
        removed."""
        path = self.folder / name
        try:
            data = path.read_bytes()
            if xxhash.xxh3_128_hexdigest(data) == _parts(name)[2]:
                os.utime(path)
                return _parse(data)
        except (FileNotFoundError, SafetensorError):
            self._forget(name)
            return None
        except OSError as error:
            self._warn(f"{path} cannot be read ({error})")
            return None
        self._forget(name)
        path.unlink(missing_ok=True)
        warnings.warn(
            f"{path} was damaged, and has been removed: what it held is computed again",
            stacklevel=2,
        )
        return None

    def has(self, ids: Sequence[int]) -> bool:
        """Whether there is a file of exactly these tokens."""
        with self._lock:
            self._look()
            return digest_of(ids) in self._names

    def write(self, prefix: Prefix, *, evict: bool = True) -> bool:
        """Keep a prefix.

        A disk that is full or fails is warned of once, and nothing is written from then on.

        Args:
            prefix: The prefix.
            evict: Whether others make room for it.

        Returns:
            Whether there is a file of it now.
        """
        if self.failed:
            return False
        if self.has(prefix.ids):
            return True
        data = save(_tensors(prefix), {"identity": self.identity})
        checksum = xxhash.xxh3_128_hexdigest(data)
        name = f"{self.identity}-{digest_of(prefix.ids)}-{checksum}{_SUFFIX}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Held by one process at a time and released by its death: what an unfinished write
            # left can be removed by the next.
            with FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS):
                for left in self.folder.glob(".new-*"):
                    left.unlink(missing_ok=True)
                if not self._make_room(len(data), evict):
                    return False
                temporary = self.folder / f".new-{name}"
                with create_file(temporary) as handle:
                    handle.write(data)
                publish(temporary, self.folder / name)
            self._learn(name, prefix.ids)
        except OSError as error:
            self.failed = True
            self._warn(f"nothing more is kept in {self.folder} ({error})")
            return False
        return True

    def remove(self, ids: Sequence[int]) -> bool:
        """Remove the file of exactly these tokens; whether there was one."""
        with self._lock:
            self._look()
            name = self._names.get(digest_of(ids))
            if name is None:
                return False
            self._forget(name)
        (self.folder / name).unlink(missing_ok=True)
        return True

    def keep_only(self, prefixes: Collection[Sequence[int]]) -> None:
        """Remove all files but those of these tokens, other models' too."""
        wanted = {(self.identity, digest_of(ids)) for ids in prefixes}
        for path in self._files():
            if _parts(path.name)[:2] not in wanted:
                path.unlink(missing_ok=True)

    @property
    def num_bytes(self) -> int:
        """What all files of the folder take."""
        return sum(size for _, size, _ in self._by_use())

    def _make_room(self, size: int, evict: bool) -> bool:
        """Whether a file of so many bytes has room, after others have been removed if they may."""
        if size > self.max_bytes:
            return False
        files = self._by_use()
        held = sum(other for _, other, _ in files)
        while files and evict and held + size > self.max_bytes:
            _, other, path = files.pop(0)
            path.unlink(missing_ok=True)
            held -= other
        return held + size <= self.max_bytes

    def _by_use(self) -> list[tuple[int, int, Path]]:
        """(when it was last used, bytes, path) of all files, the one used longest ago first."""
        found = []
        for path in self._files():
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process has removed it
                continue
            found.append((stat.st_mtime_ns, stat.st_size, path))
        return sorted(found)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob(f"*{_SUFFIX}") if not path.name.startswith(".")]

    def _look(self) -> None:
        """Learn of files that have come, and forget those that have gone."""
        try:
            changed = self.folder.stat().st_mtime_ns
        except OSError:
            changed = None
        if changed == self._seen:
            return
        self._seen = changed
        names = {path.name for path in self._files() if _parts(path.name)[0] == self.identity}
        for name in self._index:
            if name not in names:
                self._forget(name)
        for name in names:
            if name not in self._index and (ids := self._ids(name)) is not None:
                self._learn(name, ids)

    def _ids(self, name: str) -> Any:
        """The tokens that a file says it is of; None for another model's, or a damaged file."""
        try:
            with safe_open(self.folder / name, "np") as file:
                mine = (file.metadata() or {}).get("identity") == self.identity
                return file.get_tensor("ids").astype(np.int64) if mine else None
        except (OSError, SafetensorError):
            return None

    def _learn(self, name: str, ids: Sequence[int]) -> None:
        with self._lock:
            if name not in self._index:
                self._index.add(name, ids)
                self._names[_parts(name)[1]] = name

    def _forget(self, name: str) -> None:
        with self._lock:
            if name in self._index:
                self._index.remove(name)
                self._names.pop(_parts(name)[1], None)

    def _warn(self, what: str) -> None:
        warnings.warn(f"{what}: answers go on without", stacklevel=3)


def _parts(name: str) -> tuple[str, str, str]:
    """The identity, the tokens' digest and the checksum that a file's name has."""
    identity, _, rest = name.removesuffix(_SUFFIX).partition("-")
    digest, _, checksum = rest.partition("-")
    return identity, digest, checksum


def _tensors(prefix: Prefix) -> dict[str, torch.Tensor]:
    tensors = {"ids": torch.tensor(prefix.ids, dtype=torch.int32)}
    for number, layer in enumerate(prefix.layers):
        for side, part in zip(("keys", "values"), layer, strict=True):
            tensors[f"{side}.{number}"] = part.cpu().contiguous()
    return tensors


def _parse(data: bytes) -> Prefix:
    tensors = load(data)
    count = sum(name.startswith("keys.") for name in tensors)
    layers = tuple((tensors[f"keys.{n}"], tensors[f"values.{n}"]) for n in range(count))
    return Prefix(tuple(tensors["ids"].tolist()), layers)
