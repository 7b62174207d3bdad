"""Data sets: files, folders and hub names to validated rows of text.

Everything is checked before training begins, so that a bad row costs a second and not a night;
errors name the row. Rows are in Arrow tables (`datasets`), on disk if they are large.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.documents.document import Document
from gem_rag.documents.readers import read_paths
from gem_rag.errors import InputError
from gem_rag.training.recipe import COLUMNS, Source

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def read_source(name: str, source: Source) -> datasets.Dataset:
    """Read and check one source.

    Args:
        name: Its name in the recipe, for errors.
        source: Where it is.

    Returns:
        Its rows as texts, under the columns' names in `recipe.COLUMNS`, with "row" (from 1).

    Raises:
        InputError: Something cannot be used; the message names the source and the row.
    """
    if source.path is None:
        raise InputError(f"data {name!r} has no path")
    table = _select_columns(_read(name, source), name, source)
    if not len(table):
        raise InputError(f"data {name!r}: {source.path} holds no rows")
    table = table.add_column("row", np.arange(1, len(table) + 1))
    return map_rows(table, partial(_check_rows, name=name, source=source), f"checking {name}")


def map_rows(
    table: datasets.Dataset, change: Callable[..., Any], label: str, **options: Any
) -> datasets.Dataset:
    """`table.map` without its cache, which would not know what else the result depends on."""
    fingerprint = hashlib.md5(f"{table._fingerprint} {label}".encode()).hexdigest()[:16]
    return table.map(
        change,
        batched=True,
        desc=label,
        load_from_cache_file=False,
        new_fingerprint=fingerprint,
        **options,
    )


def _read(name: str, source: Source) -> datasets.Dataset:
    given = str(source.path)
    path = Path(given).expanduser()
    kind = _READERS.get(path.suffix.lower())
    try:
        if path.exists() and kind is None:
            found = [d for d in read_paths([path], path) if isinstance(d, Document)]
            return datasets.Dataset.from_dict({"text": [document.text for document in found]})
        if path.exists() and kind is not None:
            return datasets.load_dataset(kind, data_files=str(path.resolve()), split="train")
        if kind is not None or given.startswith((".", "/", "~")) or given.count("/") > 1:
            raise InputError(f"there is no file or folder {given}")
        return datasets.load_dataset(given, source.subset, split=source.split)
    except InputError as error:
        raise InputError(f"data {name!r}: {error} (JSONL, Parquet, or documents)") from None
    except Exception as error:  # the library's own, and those of every reader below it
        cause = str(error.__cause__ or error).strip().split("\n")[0]
        reason = _bad_line(path) if path.suffix == ".jsonl" and path.exists() else None
        raise InputError(f"data {name!r}: {given} cannot be read: {reason or cause}") from None


def _bad_line(file: Path) -> str | None:
    """What is wrong with a JSONL file, in words; the library counts rows in ways of its own."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"line {number} is no JSON object"
        except ValueError as error:
            return f"line {number} is not JSON ({error})"
    return None if any(map(str.strip, lines)) else "it is empty"


def _select_columns(table: datasets.Dataset, name: str, source: Source) -> datasets.Dataset:
    """The columns that the kind of source has, under their names in `recipe.COLUMNS`."""
    needed, possible = COLUMNS[source.kind]
    wanted: dict[str, str] = {}
    for column in needed + possible:
        own = source.columns.get(column, column)
        if column == "negatives" and not source.negatives:
            continue
        if own in wanted:
            raise InputError(f"data {name!r}: the columns {wanted[own]!r} and {column!r} are both "
                             f"{own!r}: name two under data.{name}.columns")  # fmt: skip
        if own in table.column_names:
            wanted[own] = column
        elif column in needed or column in source.columns or column == "negatives":
            raise InputError(
                f"data {name!r}: {source.path} has no column {own!r}"
                f"{did_you_mean(own, table.column_names)}: its columns are "
                f"{', '.join(table.column_names)}; name the right one under data.{name}.columns"
            )
    return table.select_columns(list(wanted)).rename_columns(wanted)


def _check_rows(batch: dict[str, list[Any]], name: str, source: Source) -> dict[str, list[Any]]:
    """Check rows; adds "draw", a number by which rows are held out."""

    def refuse(row: int, what: str) -> InputError:
        return InputError(f"data {name!r}, row {row} of {source.path}: {what}")

    for column in COLUMNS[source.kind][0]:
        for row, text in zip(batch["row"], batch[column], strict=True):
            if not isinstance(text, str) or not text.strip():
                what = "is empty" if text is None or isinstance(text, str) else "is not text"
                raise refuse(row, f"{column!r} {what}: correct or remove the row")
    found: dict[str, list[Any]] = {}
    if source.negatives:
        found["negatives"] = []
        for row, texts in zip(batch["row"], batch["negatives"], strict=True):
            texts = texts if isinstance(texts, list) else [texts]
            texts = [t for t in texts if isinstance(t, str) and t.strip()]
            if len(texts) < source.negatives:
                raise refuse(row, f"it has {len(texts)} negatives that are texts, and "
                             f"{source.negatives} are asked for")  # fmt: skip
            found["negatives"].append(texts[: source.negatives])
    first = batch[COLUMNS[source.kind][0][0]]
    draws = [int.from_bytes(hashlib.md5(t.encode("utf-8", "replace")).digest()[:7]) for t in first]
    return {**found, "draw": draws}
