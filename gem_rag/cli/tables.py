"""Evaluations as tables on the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from gem_rag.evaluation.comparison import Comparison
    from gem_rag.evaluation.scores import Record


def draw_scores(record: Record) -> None:
    """Every score beside the baselines', each system's means, and what is missing."""
    from gem_rag.evaluation.html_report import sections, summary

    console = Console()
    for section in sections(record):
        table = Table("", "", *section["systems"], title=section["title"], title_justify="left")
        for row in section["rows"]:
            if not row["reason"]:
                cells = [" ".join(filter(None, (c["text"], c["interval"]))) for c in row["cells"]]
                table.add_row(row["task"], row["metric"], *cells)
        if table.row_count:
            console.print(table)
    if means := summary(record):
        table = Table("", *(row["system"] for row in means["rows"]),
                      title="By kind of task", title_justify="left")  # fmt: skip
        for place, group in enumerate(means["groups"]):
            table.add_row(group, *(row["cells"][place] for row in means["rows"]))
        console.print(table)
    if record.missing:
        names = ", ".join(missing.task for missing in record.missing)
        print(f"missing: {names}\n{record.missing[0].task}: {record.missing[0].reason}")


def draw_comparison(found: list[Comparison]) -> None:
    """Both values, their difference and its chance."""
    first, second = found[0].first.system, found[0].second.system
    if first == second:
        first, second = "first", "second"
    table = Table("", "", first, second, "difference", "p")
    for one in found:
        d = one.difference
        spread = "" if math.isnan(d.low) else f" ({d.low:+.3f} to {d.high:+.3f})"
        table.add_row(
            one.first.task, one.first.metric, f"{one.first.value:.3f}", f"{one.second.value:.3f}",
            f"{d.value:+.3f}{spread}", "" if math.isnan(d.p) else f"{d.p:.3f}",
        )  # fmt: skip
    Console().print(table)
    print("95 % intervals by bootstrap over pairs; p by permutation of pairs")
