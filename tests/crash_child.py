"""A process that syncs indexes in children that kill themselves, for `test_index_crash.py`.

Usage: crash_child.py STORE, where "graph" is FAISS's with a graph of vectors. It imports everything
once and forks a child for each line of standard input, which is [FOLDER, STEP] in JSON. The child
makes FOLDER/docs the documents of FOLDER/index and dies by SIGKILL at that step of those that touch
the disk. A line of standard output is the child's exit code: 0 if it lived.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import apsw
import faiss
from fakes import FakeGem

from gem_rag.rag import database
from gem_rag.rag.index import Index
from gem_rag.rag.stores import faiss_store
from gem_rag.rag.stores.chroma_store import ChromaStore
from gem_rag.rag.stores.faiss_store import FaissStore

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
STATEMENTS = ("BEGIN", "CREATE", "INSERT INTO files", "INSERT INTO manifest", "COMMIT")


def sync(folder: Path, store: str, last: int) -> None:
    """Bring the index in sync, up to a step."""
    steps = itertools.count(1)

    def step() -> None:
        if next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(method: Callable[..., Any]) -> Callable[..., Any]:
        """Steps before and after a store's method, whose writes happen outside Python."""

        def stepping(*args: Any, **kwargs: Any) -> Any:
            step()
            result = method(*args, **kwargs)
            step()
            return result

        return stepping

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS and str(folder / "index") in " ".join(map(str, args)):
            step()

    class SteppingConnection(apsw.Connection):
        """Steps before and after statements that change what is on disk."""

        def execute(self, statement: str, *args: Any, **kwargs: Any) -> Any:
            steps = statement.lstrip().startswith(STATEMENTS)
            run = around(super().execute) if steps else super().execute
            return run(statement, *args, **kwargs)

    if store == "graph":
        store, faiss_store.EXACT = "faiss", 1
        faiss.omp_set_num_threads(1)  # a process that has forked
    index = Index.open(folder / "index", FakeGem(), store)  # type: ignore[arg-type]
    database.Connection = SteppingConnection  # type: ignore[misc]
    for kind in (FaissStore, ChromaStore):
        kind.add = around(kind.add)  # type: ignore[method-assign]
        kind.prepare = around(kind.prepare)  # type: ignore[method-assign]
        kind.clean = around(kind.clean)  # type: ignore[method-assign]
    sys.addaudithook(hook)
    index.sync([folder / "docs"])


def main() -> None:
    for line in sys.stdin:
        folder, step = json.loads(line)
        assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
        child = os.fork()
        if not child:
            sync(Path(folder), sys.argv[1], step)
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
