"""Plots of evaluations and of training runs, in one style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gem_rag.evaluation.scores import LOWER_IS_BETTER, Record, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The metric that bars show for tasks with several.
_SHOWN_METRIC = {"retrieval": "ndcg_at_10"}
_COLORS = ("#2f6fb5", "#9aa5b1", "#c9ced4", "#e0a458", "#7fb069", "#b56576")


def order_systems(systems: set[str], first: str) -> list[str]:
    """The systems by name, after the one that was evaluated."""
    return [first, *sorted(systems - {first})]


def draw_plots(record: Record) -> dict[str, Figure]:
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
            and score.metric == _SHOWN_METRIC.get(kind, score.metric)
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
    systems = order_systems({score.system for score in scores}, own)
    figure, axes = _figure(7.5, 0.9 + len(tasks) * (0.16 + 0.2 * len(systems)))
    thick = 0.8 / len(systems)
    for place, system in enumerate(systems):
        own_scores = [s for s in scores if s.system == system]
        rows = [tasks.index(label(s)) + (place - (len(systems) - 1) / 2) * thick
                for s in own_scores]  # fmt: skip
        drawn = axes.barh(rows, [s.value for s in own_scores], thick * 0.92, label=system,
                          color=_COLORS[place % len(_COLORS)],
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
    axes.hist(score.items, bins=min(40, max(5, len(score.items) // 5)), color=_COLORS[0])
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
    for place, system in enumerate(order_systems(set(points), record.system)):
        axes.scatter(*points[system], color=_COLORS[place % len(_COLORS)], s=60, zorder=3)
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


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]], unit: str) -> Figure:
    """Curves over training steps, one plot each: (step, value) by name."""
    figure, columns = _new_row(len(curves))
    for axes, (name, points) in zip(columns, curves.items(), strict=True):
        axes.plot(
            *zip(*points, strict=True), color=_COLORS[0], marker="." if len(points) < 30 else ""
        )
        axes.set(title=name, xlabel="step", ylabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    return figure


def draw_bar_groups(groups: Mapping[str, Mapping[str, float]], metric: str) -> Figure:
    """Vertical bars, one plot for each group: values from 0 to 1 by label."""
    figure, columns = _new_row(len(groups))
    for axes, (title, values) in zip(columns, groups.items(), strict=True):
        colors = [*_COLORS[1 : len(values)][::-1], _COLORS[0]]
        axes.bar_label(axes.bar(list(values), list(values.values()), color=colors), fmt="%.3f")
        axes.set(title=title, ylabel=metric, ylim=(0, 1))
    return figure


def _new_row(count: int) -> tuple[Figure, list[Any]]:
    """A figure with plots next to each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * count, 3.2), layout="constrained")
    columns = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in columns:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, columns
