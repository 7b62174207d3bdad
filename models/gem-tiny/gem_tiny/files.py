"""JSON Lines, and files that appear only when they are complete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary path that is renamed to `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".new-{path.name}")  # numpy appends a missing extension
    yield temporary
    temporary.rename(path)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def read_jsonl(path: Path) -> Iterator[Any]:
    """Read one JSON value per line."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
