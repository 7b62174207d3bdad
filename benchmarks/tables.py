"""Makes benchmarks/README.md from the recorded figures: the latest of each benchmark and case.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

HERE = Path(__file__).parent
# What tells one case of a benchmark from another, and what its table shows.
CASES = ("shape", "texts", "pairs", "tokens_each", "k", "compiled", "base", "row", "chunks")
INTRODUCTION = """# Figures

Made by `python benchmarks/tables.py` from the lines in [`results/`](results), which the benchmarks
add to. Each table is of one device and one run for each line; a share of peak is of the device's
own matrix products in that run.
"""
COMMON = ("benchmark", "date", "device", "torch")


def main(check: bool = False) -> None:
    """Write the tables; with --check, fail if they are not those of the recorded figures."""
    text = tables(read_lines(sorted(HERE.glob("results/*.jsonl"))))
    file = HERE / "README.md"
    if check and file.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{file} is not up to date: run python benchmarks/tables.py")
    file.write_text(text, encoding="utf-8")


def read_lines(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of all files, in order."""
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def tables(lines: Iterable[dict[str, Any]]) -> str:
    """Markdown: a section for each device and benchmark."""
    latest: dict[tuple[str, str], dict[tuple[Any, ...], dict[str, Any]]] = {}
    for line in lines:
        cases = latest.setdefault((line["device"], line["benchmark"]), {})
        cases[tuple(line.get(name) or None for name in CASES)] = line
    sections = [INTRODUCTION]
    for (device, benchmark), cases in sorted(latest.items()):
        rows = list(cases.values())
        newest = rows[-1]
        sections.append(
            f"## {benchmark.replace('_', ' ').capitalize()}: {device}\n\n"
            f"torch {newest['torch']}, {newest.get('date', '')}; "
            f"`python benchmarks/{benchmark}.py`\n\n{_table(rows)}"
        )
    return "\n".join(sections)


def _table(rows: list[dict[str, Any]]) -> str:
    """A case in each column, a figure in each row; the other way round for cases that have names of
    their own."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in COMMON))
    table = [[n.replace("_", " "), *(_cell(row.get(n, "")) for row in rows)] for n in names]
    if "row" in names:
        table = [list(column) for column in zip(*table, strict=True)]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]]) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    typer.run(main)
