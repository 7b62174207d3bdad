"""One page for an evaluation: tables beside baselines, and plots, in a file that needs no other."""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader

from gem_rag.evaluation.scores import LOWER_IS_BETTER, Kind, Missing, Record, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES: dict[Kind, str] = {
    "embeddings": "Embeddings",
    "generation": "Generation",
    "retrieval": "Retrieval",
    "answers": "Answers",
}
# The metric that a plot of bars shows, where a task has several.
_SHOWN = {"retrieval": "ndcg_at_10"}
_COLOURS = ("#2f6fb5", "#9aa5b1", "#c9ced4", "#e0a458", "#7fb069", "#b56576")


def write_report(record: Record, folder: Path) -> Path:
    """Write scores.json, report.html and one PNG for each plot; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    record.save(folder / "scores.json")
    images = {}
    for name, figure in _plots(record).items():
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
            systems = _ordered({score.system for score in scores} | {record.system}, record.system)
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


def _ordered(systems: set[str], first: str) -> list[str]:
    return [first, *sorted(systems - {first})]


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
    systems = _ordered({system for system, _ in values} | {record.system}, record.system)
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


# -- plots ---------------------------------------------------------------------------------------


def _plots(record: Record) -> dict[str, Figure]:
    found = {}
    for kind in ("embeddings", "retrieval", "generation"):
        if scores := _shown(record, kind):
            found[kind] = _bars(scores, record.system)
    answers = [s for s in record.scores if s.kind == "answers"]
    if shares := [s for s in answers if s.metric != "seconds"]:
        found["answers"] = _bars(shares, record.system, by_metric=True)
    for score in answers:
        if score.metric == "seconds" and score.items:
            found["latency"] = _latency(score)
    if kept := _kept(record):
        found["retrieval-and-generation"] = kept
    return found


def _shown(record: Record, kind: str) -> list[Score]:
    """One metric of each task, higher is better; of lm_eval's groups the whole, not the parts."""

    def is_shown(score: Score) -> bool:
        is_part = kind == "generation" and bool(score.group)
        return (
            score.kind == kind
            and score.metric == _SHOWN.get(kind, score.metric)
            and score.metric not in LOWER_IS_BETTER
            and "difference" not in score.metric
            and not is_part
        )

    return [score for score in record.scores if is_shown(score)]


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _bars(scores: Sequence[Score], own: str, by_metric: bool = False) -> Figure:
    """Horizontal bars, tasks below one another, systems side by side."""
    metrics = {score.metric for score in scores}
    metric = metrics.pop() if len(metrics) == 1 else "score, by each task's own metric"
    lowest = min(0.0, *(score.value for score in scores))  # of correlations, which may be negative

    def label(score: Score) -> str:
        return score.metric if by_metric else score.task

    tasks = list(dict.fromkeys(label(score) for score in scores))
    systems = _ordered({score.system for score in scores}, own)
    figure, axes = _figure(7.5, 0.9 + len(tasks) * (0.16 + 0.2 * len(systems)))
    thick = 0.8 / len(systems)
    for place, system in enumerate(systems):
        own_scores = [s for s in scores if s.system == system]
        rows = [tasks.index(label(s)) + (place - (len(systems) - 1) / 2) * thick
                for s in own_scores]  # fmt: skip
        drawn = axes.barh(rows, [s.value for s in own_scores], thick * 0.92, label=system,
                          color=_COLOURS[place % len(_COLOURS)],
                          xerr=_spread(own_scores), error_kw={"lw": 0.8, "capsize": 2})  # fmt: skip
        axes.bar_label(drawn, fmt="%.3f", padding=4, fontsize=7)
    axes.set(yticks=range(len(tasks)), yticklabels=tasks, xlim=(1.1 * lowest, 1.08),
             xlabel="share of questions" if by_metric else metric)  # fmt: skip
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    if len(systems) > 1:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _spread(scores: Sequence[Score]) -> list[list[float]]:
    """Lengths of the whiskers to either side; nan, which draws none, where nothing is known."""
    return [
        [math.nan if s.low is None else max(0.0, s.value - s.low) for s in scores],
        [math.nan if s.high is None else max(0.0, s.high - s.value) for s in scores],
    ]


def _latency(score: Score) -> Figure:
    figure, axes = _figure(7.5, 2.6)
    axes.hist(score.items, bins=min(40, max(5, len(score.items) // 5)), color=_COLOURS[0])
    axes.axvline(score.value, color="black", lw=1, ls="--")
    axes.annotate(f"mean {score.value:.2f} s", (score.value, 0.95), xytext=(4, 0), fontsize=8,
                  xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    axes.set(xlabel="seconds for a question, search and answer", ylabel="questions", xlim=(0, None))
    return figure


def _kept(record: Record) -> Figure | None:
    """Mean retrieval (or embedding) score against mean generation score, each system a point."""
    points = {}
    for system in {score.system for score in record.scores}:
        found = [_mean(record, system, kinds) for kinds in (("retrieval", "embeddings"),
                                                            ("generation",))]  # fmt: skip
        if None not in found:
            points[system] = found
    if len(points) < 2:
        return None
    figure, axes = _figure(5.5, 3.8)
    for place, system in enumerate(_ordered(set(points), record.system)):
        axes.scatter(*points[system], color=_COLOURS[place % len(_COLOURS)], s=60, zorder=3)
        axes.annotate(system, points[system], xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="retrieval, mean score", ylabel="generation, mean score")
    axes.margins(0.25)
    axes.grid(alpha=0.25)
    return figure


def _mean(record: Record, system: str, kinds: Sequence[str]) -> float | None:
    for kind in kinds:
        values = [score.value for score in _shown(record, kind) if score.system == system]
        if values:
            return sum(values) / len(values)
    return None
