"""A process that syncs an index and kills itself, for `test_index_crash.py`.

Usage: crash_child.py FOLDER STORE AT. It makes FOLDER/docs the index's documents and dies by
SIGKILL at the AT-th step that touches the disk; it exits with 0 if it lives.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fakes import FakeGem

from gem_rag.rag.index import Index
from gem_rag.rag.stores import chroma_store as chroma
from gem_rag.rag.stores import faiss_store as faiss

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
steps = itertools.count(1)


def step() -> None:
    """Count a step, and die if it is the one."""
    if next(steps) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)


def around(method: Callable[..., Any]) -> Callable[..., Any]:
    """Steps before and after a store's method, whose writes happen outside Python."""

    def stepping(*args: Any, **kwargs: Any) -> Any:
        step()
        result = method(*args, **kwargs)
        step()
        return result

    return stepping


def main() -> None:
    folder, store = Path(sys.argv[1]), sys.argv[2]
    index = Index.open(folder / "index", FakeGem(), store)  # type: ignore[arg-type]
    for kind in (faiss.FaissStore, chroma.ChromaStore):
        kind.stage = around(kind.stage)  # type: ignore[method-assign]
        kind.clean = around(kind.clean)  # type: ignore[method-assign]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS and str(folder / "index") in " ".join(map(str, args)):
            step()

    sys.addaudithook(hook)
    index.sync([folder / "docs"])


if __name__ == "__main__":
    main()
