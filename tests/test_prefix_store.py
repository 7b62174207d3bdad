"""The store of read prefixes: found by their tokens, bounded in memory and on disk, never wrong."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gem_rag.engines import prefix_files
from gem_rag.engines.prefix_files import PrefixFiles
from gem_rag.engines.prefix_index import BLOCK, PrefixIndex, common_length
from gem_rag.engines.prefix_store import LEAST_TOKENS, PrefixStore
from gem_rag.engines.prefixes import Prefix

CPU = torch.device("cpu")
MINE, OTHER = "a" * 32, "b" * 32
PLENTY = 1 << 30


def prefix(ids: Sequence[int], seed: int = 0) -> Prefix:
    """Tokens with random keys and values of two layers, which differ in width."""
    generator = torch.Generator().manual_seed(seed)
    layers = tuple(
        (torch.randn(1, 2, len(ids), width, generator=generator),
         torch.randn(1, 2, len(ids), width + 1, generator=generator))
        for width in (4, 6)
    )  # fmt: skip
    return Prefix(tuple(ids), layers)


def tokens(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


def same(found: Prefix | None, wanted: Prefix) -> bool:
    return (
        found is not None
        and found.ids == wanted.ids
        and all(
            torch.equal(a, b)
            for one, other in zip(found.layers, wanted.layers, strict=True)
            for a, b in zip(one, other, strict=True)
        )
    )


# -- finding -------------------------------------------------------------------------------------

few_tokens = st.lists(st.integers(0, 1), max_size=4 * BLOCK)


@given(st.lists(few_tokens, max_size=8), few_tokens, st.data())
def test_the_longest_shared_prefix_is_found(
    sequences: list[list[int]], beginning: list[int], data: Any
) -> None:
    """As by comparing with each, where a whole block is shared; also after some were removed."""
    sequences = [beginning + one for one in sequences]
    index: PrefixIndex[int] = PrefixIndex()
    for key, ids in enumerate(sequences):
        index.add(key, ids)
    gone = data.draw(st.sets(st.sampled_from(range(len(sequences) + 1))))
    for key in gone & set(index):
        index.remove(key)
    wanted = beginning + data.draw(few_tokens)
    lengths = {key: common_length(ids, wanted) for key, ids in enumerate(sequences)
               if key not in gone}  # fmt: skip
    longest = max(lengths.values(), default=0)
    key, length = index.longest(wanted)
    if longest < BLOCK:
        assert (key, length) == (None, 0)
    else:
        assert length == longest == lengths[key]


@given(st.lists(st.integers(0, 2), max_size=50), st.lists(st.integers(0, 2), max_size=50))
def test_common_length(first: list[int], second: list[int]) -> None:
    count = common_length(first, second)
    assert first[:count] == second[:count]
    assert count == min(len(first), len(second)) or first[count] != second[count]


def test_one_token_is_always_left_to_read() -> None:
    store = PrefixStore(PLENTY, CPU)
    kept = prefix(tokens(100))
    store.add(kept)
    assert store.longest(tokens(100)) == (kept, 99)
    assert store.longest([*tokens(100), 7]) == (kept, 100)
    assert store.longest([*tokens(80), 7, 8]) == (kept, 80)


def test_what_is_too_short_is_neither_kept_nor_found() -> None:
    store = PrefixStore(PLENTY, CPU)
    store.add(prefix(tokens(LEAST_TOKENS - 1)))
    assert len(store) == 0
    store.add(prefix(tokens(200)))
    assert store.longest([*tokens(LEAST_TOKENS - 1), 7, 8, 9]) == (None, 0)
    assert store.longest([*tokens(LEAST_TOKENS), 7, 8, 9])[1] == LEAST_TOKENS


def test_a_longer_prefix_takes_the_place_of_what_it_holds() -> None:
    store = PrefixStore(PLENTY, CPU)
    store.add(prefix(tokens(100)))
    store.add(prefix(tokens(100 + LEAST_TOKENS)))
    assert len(store) == 1
    store.add(prefix([*tokens(150), 7]))  # little of it is new
    assert len(store) == 1
    store.add(prefix([*tokens(90), *tokens(100, first=1000)]))
    assert len(store) == 2


# -- bounds --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(64, 300)), max_size=20))
def test_memory_is_bounded_and_the_last_used_stay(steps: list[tuple[int, int]]) -> None:
    """Whatever is added and looked for; each number is a text of its own, of which so many tokens
    are read."""
    size = prefix(tokens(300)).num_bytes
    store = PrefixStore(2 * size, CPU)
    for text, count in steps:
        ids = tokens(count, first=1000 * text)
        store.add(prefix(ids))
        assert store.num_bytes <= 2 * size
        found, length = store.longest([*ids, 9999])
        assert length > count - LEAST_TOKENS
        assert found is not None
        assert store.num_bytes == sum(one.num_bytes for one in store._prefixes.values())
    store.clear()
    assert (store.num_bytes, len(store)) == (0, 0)
    assert store._index._by_blocks == {}


def test_what_memory_has_no_room_for_goes_to_disk(tmp_path: Path) -> None:
    first, second = prefix(tokens(100), 1), prefix(tokens(100, first=500), 2)
    store = PrefixStore(first.num_bytes, CPU, PrefixFiles(tmp_path, MINE, PLENTY))
    store.add(first)
    assert not list(tmp_path.iterdir())
    store.add(second)
    assert len(store) == 1
    found, length = store.longest([*first.ids, 9])
    assert (same(found, first), length) == (True, 100)
    found, _ = store.longest([*second.ids, 9])
    assert same(found, second)


def test_the_least_recently_used_files_make_room(tmp_path: Path) -> None:
    some = [prefix(tokens(100, first=1000 * n), n) for n in range(4)]
    size = len(prefix_files.save(prefix_files._tensors(some[0]), {"identity": MINE}))
    files = PrefixFiles(tmp_path, MINE, 3 * size + 100)
    for number, one in enumerate(some[:3]):
        assert files.write(one)
        name, _ = files.longest(one.ids)
        os.utime(tmp_path / str(name), ns=(number, number))
    name, _ = files.longest(some[0].ids)
    assert same(files.read(str(name)), some[0])  # which is a use
    assert not files.write(some[3], evict=False)
    assert files.write(some[3])
    assert [files.has(one.ids) for one in some] == [True, False, True, True]
    assert files.num_bytes <= 3 * size + 100
    assert not PrefixFiles(tmp_path, MINE, size - 1).write(prefix(tokens(100, first=9000)))
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_only_what_is_wanted_stays(tmp_path: Path) -> None:
    some = [prefix(tokens(100, first=1000 * n), n) for n in range(3)]
    files = PrefixFiles(tmp_path, MINE, PLENTY)
    for one in some:
        files.write(one)
    PrefixFiles(tmp_path, OTHER, PLENTY).write(some[0])
    files.keep_only([some[1].ids])
    assert [files.has(one.ids) for one in some] == [False, True, False]
    assert not PrefixFiles(tmp_path, OTHER, PLENTY).has(some[0].ids)


# -- bad input -----------------------------------------------------------------------------------


def test_a_flipped_byte_is_never_used(tmp_path: Path) -> None:
    """Wherever it is: in the header, the tokens, the keys or the values."""
    kept = prefix(tokens(70))
    files = PrefixFiles(tmp_path, MINE, PLENTY)
    files.write(kept)
    [path] = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    for place in [*range(0, 300, 7), *range(300, len(whole), 499), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fresh = PrefixFiles(tmp_path, MINE, PLENTY)
            assert fresh.read(path.name) is None, place
        assert not path.exists()
        store = PrefixStore(PLENTY, CPU, fresh)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert store.longest([*kept.ids, 9]) == (None, 0), place
    path.write_bytes(whole)
    assert same(PrefixFiles(tmp_path, MINE, PLENTY).read(path.name), kept)


def test_a_damaged_file_is_warned_of_and_removed(tmp_path: Path) -> None:
    files = PrefixFiles(tmp_path, MINE, PLENTY)
    files.write(prefix(tokens(70)))
    [path] = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="was damaged, and has been removed"):
        assert files.read(path.name) is None
    assert files.longest(tokens(70)) == (None, 0)


def test_another_models_prefixes_are_not_found(tmp_path: Path) -> None:
    PrefixFiles(tmp_path, OTHER, PLENTY).write(prefix(tokens(70)))
    files = PrefixFiles(tmp_path, MINE, PLENTY)
    assert files.longest(tokens(70)) == (None, 0)
    [path] = tmp_path.glob("*.safetensors")
    path.rename(path.with_name(path.name.replace(OTHER, MINE)))  # its header says whose it is
    assert PrefixFiles(tmp_path, MINE, PLENTY).longest(tokens(70)) == (None, 0)


def test_a_full_disk_is_warned_of_once_and_answers_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prefix_files, "create_file", full)
    files = PrefixFiles(tmp_path, MINE, PLENTY)
    one = prefix(tokens(100))
    store = PrefixStore(one.num_bytes, CPU, files)
    store.add(one)
    with pytest.warns(UserWarning, match="nothing more is kept in .*No space left"):
        store.add(prefix(tokens(100, first=1000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in (2, 3):
            store.add(prefix(tokens(100, first=1000 * number)))
    assert not list(tmp_path.glob("*.safetensors"))
    assert store.longest([*tokens(100, first=3000), 9])[1] == 100


def test_a_folder_that_may_not_be_written_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files = PrefixFiles(tmp_path / "file" / "folder", MINE, PLENTY)
    with pytest.warns(UserWarning, match="nothing more is kept"):
        assert not files.write(prefix(tokens(70)))


def test_a_file_that_another_process_removes_is_read_anew(tmp_path: Path) -> None:
    files = PrefixFiles(tmp_path, MINE, PLENTY)
    files.write(prefix(tokens(70)))
    name, _ = files.longest(tokens(70))
    (tmp_path / str(name)).unlink()
    assert files.read(str(name)) is None
    assert files.longest(tokens(70)) == (None, 0)


# -- processes -----------------------------------------------------------------------------------

CHILD = """
import itertools, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_prefix_store import MINE, PLENTY, prefix, tokens
from gem_rag.engines.prefix_files import PrefixFiles
files = PrefixFiles(Path({folder!r}), MINE, {most})
print("ready", flush=True)
for number in itertools.count({start}):
    files.write(prefix(tokens(400, first=1000 * number), number))
"""


def start_child(folder: Path, start: int, most: int = PLENTY) -> subprocess.Popen[str]:
    """A process that writes one prefix after another."""
    code = CHILD.format(
        tests=str(Path(__file__).parent), folder=str(folder), start=start, most=most
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.slow
def test_a_process_that_is_killed_while_writing_leaves_no_half_file(tmp_path: Path) -> None:
    for attempt in range(4):
        child = start_child(tmp_path, 1000 * attempt)
        time.sleep(0.05 + 0.07 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for path in tmp_path.glob("[!.]*.safetensors"):
            assert PrefixFiles(tmp_path, MINE, PLENTY).read(path.name) is not None
    (tmp_path / ".new-left").write_bytes(b"half")
    assert PrefixFiles(tmp_path, MINE, PLENTY).write(prefix(tokens(70)))
    assert not list(tmp_path.glob(".new-*"))


@pytest.mark.slow
def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Both write and evict, and a third reads what is there meanwhile."""
    size = prefix(tokens(400)).num_bytes
    children = [start_child(tmp_path, start, 12 * size) for start in (0, 500_000)]
    files = PrefixFiles(tmp_path, MINE, 12 * size)
    read = 0
    deadline = time.monotonic() + 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while time.monotonic() < deadline:
            for path in list(tmp_path.glob("[!.]*.safetensors")):
                found = files.read(path.name)
                if found is not None:
                    number = found.ids[0] // 1000
                    assert same(found, prefix(tokens(400, first=1000 * number), number))
                    read += 1
            assert files.num_bytes <= 12 * size
    for child in children:
        assert child.poll() is None
        child.kill()
        child.wait()
    assert read > 10


def test_many_threads_share_a_store(tmp_path: Path) -> None:
    some = [prefix(tokens(100, first=1000 * n), n) for n in range(6)]
    store = PrefixStore(2 * some[0].num_bytes, CPU, PrefixFiles(tmp_path, MINE, PLENTY))
    failures: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for step in range(20):
                wanted = some[(number + step) % len(some)]
                found, length = store.longest([*wanted.ids, 9])
                if found is None:
                    store.add(wanted)
                else:
                    assert length == 100
                    assert same(found, wanted)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
