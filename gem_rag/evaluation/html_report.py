"""An evaluation as one self-contained page: tables with baselines, and plots."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from gem_rag.evaluation.plots import draw_plots, order_systems
from gem_rag.evaluation.scores import Kind, Missing, Record, Score

_TITLES: dict[Kind, str] = {
    "embeddings": "Embeddings",
    "generation": "Generation",
    "retrieval": "Retrieval",
    "answers": "Answers",
}


def write_report(record: Record, folder: Path) -> Path:
    """Write scores.json, report.html and one PNG for each plot; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    record.save(folder / "scores.json")
    images = {}
    for name, figure in draw_plots(record).items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=130)
        (folder / f"{name}.png").write_bytes(drawn.getvalue())
        images[name] = base64.b64encode(drawn.getvalue()).decode()
    environment = Environment(
        loader=PackageLoader("gem_rag.evaluation"), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        record=record, sections=sections(record), summary=summary(record), images=images
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


# -- tables --------------------------------------------------------------------------------------


def sections(record: Record) -> list[dict[str, Any]]:
    """For each kind of score a table: rows are tasks and metrics, columns systems.

    What could not be measured stands in the table too, with the reason.
    """
    found = []
    for kind, title in _TITLES.items():
        scores = [score for score in record.scores if score.kind == kind]
        missing = [m for m in record.missing if m.kind == kind]
        if scores or missing:
            systems = order_systems(
                {score.system for score in scores} | {record.system}, record.system
            )
            found.append({"kind": kind, "title": title, "systems": systems,
                          "rows": _rows(scores, missing, systems)})  # fmt: skip
    return found


def _rows(
    scores: Sequence[Score], missing: Sequence[Missing], systems: Sequence[str]
) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str, str], dict[str, Score]] = defaultdict(dict)
    for score in scores:
        rows[score.group, score.task, score.metric][score.system] = score
    shown = [
        {"group": group, "task": task, "metric": metric, "reason": "",
         "cells": [_cell(by_system.get(system), by_system.values()) for system in systems]}
        for (group, task, metric), by_system in rows.items()
    ]  # fmt: skip
    shown += [{"group": m.group, "task": m.task, "metric": "", "reason": m.reason, "cells": []}
              for m in missing]  # fmt: skip
    return sorted(shown, key=lambda row: row["group"])


def _cell(score: Score | None, beside: Any) -> dict[str, Any]:
    if score is None:
        return {"text": "", "interval": "", "best": False}
    spread = ""
    if score.low is not None and score.high is not None:
        spread = f"{score.low:.3f} to {score.high:.3f}"
    elif score.error is not None:
        spread = f"± {score.error:.3f}"
    values = [other.value for other in beside]
    return {"text": f"{score.value:.3f}", "interval": spread,
            "best": len(values) > 1 and score.value == max(values)}  # fmt: skip


def summary(record: Record) -> dict[str, Any] | None:
    """Each system's mean by kind of task, the paper's first table: rows are systems.

    None where no system was measured on more than one kind of task. A mean of some of a kind's
    tasks says of how many; where there is none, "missing".
    """
    wanted: dict[str, dict[str, None]] = defaultdict(dict)
    values: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    everything: list[Score | Missing] = [*record.scores, *record.missing]
    for one in everything:
        # Of lm_eval's tasks those count that are part of no other, each by itself.
        alone = one.kind == "generation" and not one.group
        if alone or (one.kind == "embeddings" and one.group):
            column = one.task if alone else one.group
            wanted[column][one.task] = None
            if isinstance(one, Score) and "difference" not in one.metric:
                values[one.system, column][one.task] = one.value
    if len(wanted) < 2:
        return None
    systems = order_systems({system for system, _ in values} | {record.system}, record.system)
    return {
        "groups": list(wanted),
        "rows": [
            {
                "system": system,
                "cells": [_mean_of(values[system, g], len(wanted[g])) for g in wanted],
            }
            for system in systems
        ],
    }


def _mean_of(values: dict[str, float], wanted: int) -> str:
    if not values:
        return "missing"
    mean = f"{sum(values.values()) / len(values):.3f}"
    return mean if len(values) == wanted else f"{mean} ({len(values)} of {wanted})"
