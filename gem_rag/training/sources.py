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
    """`table.map` without its cache, which cannot tell what else the result depends on."""
    fingerprint = hashlib.md5(f"{table._fingerprint} {label}".encode()).hexdigest()[:16]
    return table.map(
        change,
        batched=True,
        desc=label,
        load_from_cache_file=False,
        new_fingerprint=fingerprint,
        **options,
    )


# What an index reads as a document, and a user may mean as rows.
_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".ods")


def _read(name: str, source: Source) -> datasets.Dataset:
    location = str(source.path)
    path = Path(location).expanduser()
    reader = _READERS.get(path.suffix.lower())
    try:
        if path.is_file() and path.suffix.lower() in _TABLES:
            raise InputError(f"{location} is not read for its rows: write it as JSONL or Parquet")
        if path.exists() and reader is None:
            documents = [d for d in read_paths([path], path) if isinstance(d, Document)]
            return datasets.Dataset.from_dict({"text": [document.text for document in documents]})
        if path.exists() and reader is not None:
            return datasets.load_dataset(reader, data_files=str(path.resolve()), split="train")
        if reader is not None or location.startswith((".", "/", "~")) or location.count("/") > 1:
            raise InputError(f"there is no file or folder {location}")
        return datasets.load_dataset(location, source.subset, split=source.split)
    except InputError as error:
        raise InputError(f"data {name!r}: {error} (JSONL, Parquet, or documents)") from None
    except Exception as error:  # datasets' own, and those of the readers that it calls
        cause = str(error.__cause__ or error).strip().split("\n")[0]
        reason = _describe_bad_line(path) if path.suffix == ".jsonl" and path.exists() else None
        raise InputError(f"data {name!r}: {location} cannot be read: {reason or cause}") from None


def _describe_bad_line(file: Path) -> str | None:
    """What is wrong with a JSONL file; datasets does not give the number of the line."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"line {number} is no JSON object"
        except ValueError as error:
            return f"line {number} is not JSON ({error})"
    return None if any(map(str.strip, lines)) else "it is empty"


def _select_columns(table: datasets.Dataset, name: str, source: Source) -> datasets.Dataset:
    """The columns of the source's kind, under their names in `recipe.COLUMNS`."""
    required, optional = COLUMNS[source.kind]
    new_names: dict[str, str] = {}
    for column in required + optional:
        file_column = source.columns.get(column, column)
        if column == "negatives" and not source.negatives:
            continue
        # A common name, which the file may have for something else.
        if column == "source" and file_column in new_names and column not in source.columns:
            continue
        if file_column in new_names:
            raise InputError(
                f"data {name!r}: the columns {new_names[file_column]!r} and {column!r} are both "
                f"{file_column!r}: name two under data.{name}.columns"
            )
        if file_column in table.column_names:
            new_names[file_column] = column
        elif column in required or column in source.columns or column == "negatives":
            raise InputError(
                f"data {name!r}: {source.path} has no column {file_column!r}"
                f"{did_you_mean(file_column, table.column_names)}: its columns are "
                f"{', '.join(table.column_names)}; name the right one under data.{name}.columns"
            )
    return table.select_columns(list(new_names)).rename_columns(new_names)


def _check_rows(batch: dict[str, list[Any]], name: str, source: Source) -> dict[str, list[Any]]:
    """Check rows; adds "draw", a number by which rows are held out."""

    def row_error(row: int, problem: str) -> InputError:
        return InputError(f"data {name!r}, row {row} of {source.path}: {problem}")

    for column in COLUMNS[source.kind][0]:
        for row, text in zip(batch["row"], batch[column], strict=True):
            if not isinstance(text, str) or not text.strip():
                problem = "is empty" if text is None or isinstance(text, str) else "is not text"
                raise row_error(row, f"{column!r} {problem}: correct or remove the row")
    columns: dict[str, list[Any]] = {}
    if source.negatives:
        columns["negatives"] = []
        for row, value in zip(batch["row"], batch["negatives"], strict=True):
            values = value if isinstance(value, list) else [value]
            texts = [text for text in values if isinstance(text, str) and text.strip()]
            if len(texts) < source.negatives:
                raise row_error(
                    row,
                    f"it has {len(texts)} negatives that are texts, and {source.negatives} are "
                    "asked for",
                )
            columns["negatives"].append(texts[: source.negatives])
    first = batch[COLUMNS[source.kind][0][0]]
    hashes = (hashlib.md5(text.encode("utf-8", "replace")) for text in first)
    return {**columns, "draw": [int.from_bytes(h.digest()[:7]) for h in hashes]}
