"""What an index survives: kills, flipped bytes, readers beside a writer, two writers, a full disk.

For both stores, in processes of their own, with random but repeatable times and places. Vectors
come from the tests' stand-in for a model, so that the index is all that works. A line counts what
was tried and how it ended; anything in the last column is a fault.

    python benchmarks/index_durability.py [--kills N] [--flips N] [--reads N] [--limits N]

N flips are in each file, everything else is tried N times with each store.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fakes import FakeGem

from gem_rag import Document, GemError, Index
from gem_rag.rag.stores import faiss_store

GEM: Any = FakeGem()
faiss_store.EXACT = 100  # so that the index has a graph, too
# Children come from a process that has never used a store: their threads do not outlive a fork.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["gem_rag.rag.stores.chroma_store", "gem_rag.rag.stores.faiss_store"]
)
OLD = [Document(str(n), f"word{n} pump{n % 7} lamp{n % 5}") for n in range(200)]
NEW = [Document(str(n), f"word{n} pump{n % 7} door{n % 3}") for n in range(200)]
QUESTION = "word3 pump3"
Outcome = tuple[str, bool]  # how it ended, and whether that is a fault


def main(kills: int = 100, flips: int = 100, reads: int = 150, limits: int = 30) -> None:
    """Print how often each ended how."""
    table = Table("store", "what was tried", "times", "how it ended", "faults")
    for store in ("faiss", "chroma"):
        with tempfile.TemporaryDirectory() as scratch:
            old = Path(scratch, "old")
            Index.open(old, GEM, store).sync(OLD)  # type: ignore[arg-type]
            trials: dict[str, Callable[[], list[Outcome]]] = {
                "a sync is killed": lambda old=old: kill_syncs(old, kills),
                "a byte is flipped": lambda old=old: flip_bytes(old, flips),
                "read beside a sync": lambda old=old: read_beside(old, reads),
                "two syncs at once": lambda old=old: write_twice(old, 20),
                "no room for a file": lambda old=old: fill_disk(old, limits),
            }
            for title, trial in trials.items():
                outcomes = trial()
                ended = Counter(name for name, fault in outcomes if not fault)
                faults = Counter(name for name, fault in outcomes if fault)
                table.add_row(store, title, str(len(outcomes)), listed(ended), listed(faults))
    Console(width=140).print(table)


def listed(counts: Counter[str]) -> str:
    return "; ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"


def search(folder: Path) -> list[tuple[str, str, float]]:
    index = Index.open(folder, GEM, create=False)
    return [(h.chunk.source, h.chunk.text, round(h.score, 4)) for h in index.search(QUESTION, 5)]


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(folder, Path(tempfile.mkdtemp(dir=folder.parent), "index")))


def start(folder: Path, documents: list[Document], limit: int = 0, forever: bool = False) -> Any:
    """A process that syncs; it exits with 0, 3 for a GemError or 4 for another exception."""
    process = PROCESSES.Process(target=work, args=(folder, documents, limit, forever))
    process.start()
    return process


def work(folder: Path, documents: list[Document], limit: int, forever: bool) -> None:
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        sync(folder, documents)
        while forever:
            sync(folder, OLD)
            sync(folder, documents)
    except GemError:
        sys.exit(3)
    except Exception:
        traceback.print_exc()
        sys.exit(4)


def exit_code(process: Any) -> int | None:
    process.join(60)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


def sync(folder: Path, documents: list[Document]) -> None:
    Index.open(folder, GEM).sync(documents)


# -- trials -----------------------------------------------------------------------------------


def kill_syncs(old: Path, times: int) -> list[Outcome]:
    """SIGKILL at a random moment of a sync."""
    before = search(old)
    whole = copied(old)
    began = time.perf_counter()
    exit_code(start(whole, NEW))
    seconds, after = time.perf_counter() - began, search(whole)
    rng, outcomes = random.Random(0), list[Outcome]()
    for _ in range(times):
        folder = copied(old)
        process = start(folder, NEW)
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.join()
        found = attempt(lambda folder=folder: search(folder))
        again = attempt(lambda folder=folder: [sync(folder, NEW), search(folder)][1])
        named = {str(before): "as before", str(after): "as after"}.get(str(found))
        fault = named is None or again != after
        outcomes.append((f"left {found}, then {again}" if fault else named or "", fault))
    return outcomes


def flip_bytes(old: Path, times: int) -> list[Outcome]:
    """Each file has a byte flipped, many times."""
    wanted = search(old)
    scores = {(source, text): score for source, text, score in wanted}
    files = [p for p in sorted(old.rglob("*")) if p.is_file() and p.stat().st_size]
    rng, outcomes = random.Random(0), list[Outcome]()
    for flipped in (file for file in files for _ in range(times)):
        folder = copied(old)
        file = folder / flipped.relative_to(old)
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        found = attempt(lambda folder=folder: search(folder))
        shutil.rmtree(folder.parent)
        if isinstance(found, str):
            named = found in ("GemError", "InputError")
            outcomes.append(("an error that says so" if named else found, not named))
        elif found == wanted:
            outcomes.append(("the same hits", False))
        else:  # approximate search may miss a neighbor; what it returns has its true score
            true = all(scores.get((source, text), score) == score for source, text, score in found)
            outcomes.append(
                ("a neighbor missed" if true else f"wrong hits in {file.name}", not true)
            )
    return outcomes


def read_beside(old: Path, times: int) -> list[Outcome]:
    """Open and search while another process commits again and again."""
    folder = copied(old)
    before = search(folder)
    sync(folder, NEW)
    after = search(folder)

    writer = start(folder, NEW, forever=True)
    outcomes = list[Outcome]()
    for _ in range(times):
        found = attempt(lambda: search(folder))
        named = {str(before): "one commit", str(after): "another commit"}.get(str(found))
        outcomes.append((named or str(found), named is None))
    alive = writer.is_alive()
    writer.kill()
    return outcomes if alive else [*outcomes, ("the writer ended", True)]


def write_twice(old: Path, times: int) -> list[Outcome]:
    """Two processes sync different documents at the same moment."""
    outcomes = list[Outcome]()
    for _ in range(times):
        folder = copied(old)
        processes = [start(folder, documents) for documents in (NEW, [Document("x", "x")])]
        codes = sorted(map(exit_code, processes), key=str)
        found = attempt(lambda folder=folder: search(folder))
        ended = {(0, 0): "one after the other", (0, 3): "one refused"}.get(tuple(codes))
        outcomes.append((ended or f"exit codes {codes}", ended is None or isinstance(found, str)))
    return outcomes


def fill_disk(old: Path, times: int) -> list[Outcome]:
    """No file may grow beyond a size that is smaller than what the sync would write."""
    before, outcomes = search(old), list[Outcome]()
    largest = max(p.stat().st_size for p in old.rglob("*") if p.is_file())
    grown = [Document(str(n), f"word{n} pump{n % 7} door{n % 3}") for n in range(800)]
    for number in range(times):
        folder = copied(old)

        code = exit_code(start(folder, grown, largest * (number + 1) // times))
        found = attempt(lambda folder=folder: search(folder))
        again = attempt(lambda folder=folder: [sync(folder, grown), "synced"][1])
        fault = code not in (0, 3) or again != "synced" or (code == 3 and found != before)
        ended = "a GemError, and as before" if code == 3 else "there was room"
        outcomes.append((f"exit {code}, {found}, {again}" if fault else ended, fault))
    return outcomes


def attempt(call: Callable[[], Any]) -> Any:
    """What a call returns, or the name of what it raises."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__


if __name__ == "__main__":
    typer.run(main)
