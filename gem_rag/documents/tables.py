"""Rows of cells to Markdown tables, and where each row is in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Places = list[tuple[int, str]]


def table(
    rows: Iterable[Sequence[Any]], where: str = "", start: int = 0, first_row: int = 1
) -> tuple[str, Places]:
    """A Markdown table of the rows that are not empty; the first of them is its header.

    Args:
        rows: Rows of cells.
        where: What stands before "row N" in a place.
        start: The table's first character in the document's text.
        first_row: Number of the first of the rows.

    Returns:
        The table, and (first character, place) of each of its rows.
    """
    numbered = ((number, _cells(row)) for number, row in enumerate(rows, start=first_row))
    kept = [(number, cells) for number, cells in numbered if cells]
    width = max((len(cells) for _, cells in kept), default=0)
    lines: list[str] = []
    places: Places = []
    for number, cells in kept:
        places.append((start, f"{where}row {number}"))
        new = [_line([*cells, *[""] * (width - len(cells))])]
        if not lines:
            new.append(_line(["---"] * width))
        lines += new
        start += sum(len(line) + 1 for line in new)
    return "\n".join(lines), places


def _cells(row: Sequence[Any]) -> list[str]:
    """The texts of a row's cells up to the last one that has some."""
    cells = [_text(cell) for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _text(cell: Any) -> str:
    """A cell's text on one line, with bars that do not end it."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # as spreadsheets show it
    return " ".join(str("" if cell is None else cell).split()).replace("|", r"\|")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
