"""The report of a training run: figures before and after, and its cost; Markdown, JSON and plots.

Measures the checkpoint as it was saved, which users will load, not the model in memory.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gem_rag._utils.terminal import escape_controls
from gem_rag.core.auto_model import load_language_model
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.evaluation.known_item import RetrievalFigures
from gem_rag.evaluation.perplexity import PerplexityComparison, compare_perplexity
from gem_rag.evaluation.plots import draw_bar_groups, draw_curves
from gem_rag.evaluation.significance import Difference
from gem_rag.training.corpus import HeldOut
from gem_rag.training.recipe import Recipe
from gem_rag.training.report_retrieval import Example, measure_retrieval
from gem_rag.training.trainer import LOSSES


@dataclass(frozen=True)
class Cost:
    """What a training run used.

    Attributes:
        history: Log entries: each has the step, losses, and tokens, positions ("places") and
            seconds since the one before.
        processes: How many processes trained.
        peak_bytes: Peak memory of the GPU if there is one, else of the process.
        trained_parameters: How many numbers were trained.
        device: The GPU, or the CPU's architecture and threads.
    """

    history: Sequence[Mapping[str, float]]
    processes: int
    peak_bytes: int
    trained_parameters: int
    device: str

    @property
    def seconds(self) -> float:
        """Duration of the training."""
        return sum(entry["seconds"] for entry in self.history)

    @property
    def tokens(self) -> int:
        """Tokens in all forward passes of all processes."""
        return int(sum(entry["tokens"] for entry in self.history))

    @property
    def padding(self) -> float:
        """Share of computed positions that were padding."""
        return 1 - self.tokens / max(1.0, sum(entry["places"] for entry in self.history))


@dataclass(frozen=True)
class Report:
    """A training run's report, as in report.json.

    Attributes:
        base: Name of the model that training started from.
        out: Name of the trained model's folder.
        retrieval: Figures by data set, then by way of searching: see `Retrieval`.
        differences: Of the mean reciprocal rank, after minus before, by data set.
        examples: Held-out queries by data set, and what was found for them.
        generation: Perplexity on held-out texts, if there are any.
        steps: Optimizer steps.
        tokens: See `Cost`.
        seconds: See `Cost`.
        tokens_per_second: Over all processes.
        padding: Share of computed positions that were padding.
        peak_bytes: See `Cost`.
        trained_parameters: See `Cost`.
        processes: See `Cost`.
        device: See `Cost`.
        losses: Log entries with steps and losses.
        record: The recipe, its hash, and hashes of the base and the data, as in run.json.
    """

    base: str
    out: str
    retrieval: dict[str, dict[str, RetrievalFigures]]
    differences: dict[str, Difference]
    examples: dict[str, list[Example]]
    generation: PerplexityComparison | None
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    padding: float
    peak_bytes: int
    trained_parameters: int
    processes: int
    device: str
    losses: list[dict[str, float]]
    record: dict[str, Any]

    def summary(self) -> str:
        """The figures without settings and plots, for a terminal."""
        return "\n".join(_format_figures(self))


def make_report(
    saved: Checkpoint,
    base: Checkpoint,
    recipe: Recipe,
    held_out: Sequence[HeldOut],
    cost: Cost,
    record: Mapping[str, Any],
) -> Report:
    """Measure, and write report.md, report.json and plots to the checkpoint's report folder.

    Args:
        saved: The trained model.
        base: The model that training started from.
        recipe: The recipe.
        held_out: Rows to measure on.
        cost: What training used.
        record: The run's record, as in run.json.

    Returns:
        The report.
    """
    losses = [
        {name: entry[name] for name in ("step", "loss", *LOSSES) if name in entry}
        for entry in cost.history
    ]
    measured = measure_retrieval(saved, base, recipe.k, held_out)
    report = Report(
        base=base.name,
        out=Path(saved.name).name,
        retrieval={name: part.figures for name, part in measured.items()},
        differences={name: part.difference for name, part in measured.items()},
        examples={name: part.examples for name, part in measured.items()},
        generation=measure_generation(saved, base, recipe.max_length, held_out),
        steps=recipe.schedule.steps,
        tokens=cost.tokens,
        seconds=round(cost.seconds, 1),
        tokens_per_second=round(cost.tokens / max(1e-9, cost.seconds), 1),
        padding=round(cost.padding, 4),
        peak_bytes=cost.peak_bytes,
        trained_parameters=cost.trained_parameters,
        processes=cost.processes,
        device=cost.device,
        losses=losses,
        record=dict(record),
    )
    folder = Path(saved.name) / "report"
    folder.mkdir(exist_ok=True)
    state = json.dumps(dataclasses.asdict(report), indent=2)
    (folder / "report.json").write_text(state + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_format_report(report), encoding="utf-8")
    _plot(report, folder)
    return report


def measure_generation(
    saved: Checkpoint, base: Checkpoint, max_length: int, held_out: Sequence[HeldOut]
) -> PerplexityComparison | None:
    """Perplexity on held-out texts by the plain language models of both folders."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [
        load_language_model(c.path, dtype=torch.float32).to(device).eval() for c in (base, saved)
    ]
    tokenizer = SafeTokenizer.from_folder(saved.path)
    encoded = tokenizer.encode([text for part in held_out for text in part.texts()])
    rows = [e.ids[:max_length] for e in encoded if len(e.ids) > 1]
    return compare_perplexity(models[0], models[1], rows) if rows else None


# -- formatting ----------------------------------------------------------------------------------


def _format_report(report: Report) -> str:
    pictures = ["![losses](losses.png)", ""]
    if report.retrieval:
        pictures += ["![retrieval](retrieval.png)", ""]
    for name, examples in report.examples.items():
        pictures += _format_examples(name, examples)
    settings = ["## Settings", "", "```json", json.dumps(report.record, indent=2), "```", ""]
    return "\n".join([*_format_figures(report), *pictures, *settings])


def _format_figures(report: Report) -> list[str]:
    lines = [f"# {report.out}: GEM training of {report.base}", ""]
    for name, rows in report.retrieval.items():
        lines += _format_retrieval(name, rows, report.differences[name])
    if report.generation:
        lines += _format_generation(report.generation)
    return [*lines, *_format_cost(report)]


def _format_retrieval(
    name: str, rows: Mapping[str, RetrievalFigures], difference: Difference
) -> list[str]:
    lines = [f"## Retrieval on held-out {name}", "", "| | R@1 | R@10 | MRR |", "|---|---|---|---|"]
    for label, figures in rows.items():
        values = (figures.recall_1, figures.recall_10, figures.mrr)
        lines.append(f"| {label} | {' | '.join(f'{v:.3f}' for v in values)} |")
    queries = next(iter(rows.values())).queries
    return [
        *lines,
        "",
        f"{queries} queries, one right document each. Training changes the MRR by "
        f"{difference.value:+.3f} (95 % interval {difference.low:+.3f} to {difference.high:+.3f}, "
        f"p = {difference.p:.2g}, paired by query).",
        "",
    ]


def _format_examples(name: str, examples: Sequence[Example]) -> list[str]:
    """Queries with the rank of their document, and what was first instead."""
    lines = [
        f"## {len(examples)} queries of held-out {name}, drawn by a hash of their words",
        "",
        "| query | rank before | rank after | first before | first after |",
        "|---|---|---|---|---|",
    ]
    for one in examples:
        query, before, after = map(_escape_markdown, (one.query, one.found_before, one.found_after))
        lines.append(f"| {query} | {one.rank_before} | {one.rank_after} | {before} | {after} |")
    return [*lines, ""]


def _escape_markdown(text: str) -> str:
    """Texts that Markdown shows as they are, in a cell of a table too."""
    return re.sub(r"[\\`*_\[\]<>|~&!$]", r"\\\g<0>", escape_controls(text))


def _format_generation(generation: PerplexityComparison) -> list[str]:
    difference = generation.logits_difference
    change = "are equal, bit for bit" if difference == 0 else f"differ by at most {difference:.3g}"
    return [
        "## Generation on held-out text",
        "",
        "| | before | after |",
        "|---|---|---|",
        f"| perplexity per token | {generation.before:.3f} | {generation.after:.3f} |",
        "",
        f"{generation.tokens} tokens. The logits of the base and of the trained model {change}.",
        "",
    ]


def _format_cost(report: Report) -> list[str]:
    minutes, seconds = divmod(round(report.seconds), 60)
    data = [
        f"- data {name}: {counts['rows']} rows, {counts['cut']} of them cut at the maximal length"
        for name, counts in report.record["data"].items()
    ]
    return [
        "## Cost",
        "",
        f"- {report.steps} steps in {minutes} min {seconds} s on {report.device}, "
        f"{report.processes} process{'es' if report.processes > 1 else ''}",
        f"- {report.tokens} tokens, {report.tokens_per_second:.0f} a second; "
        f"padding {report.padding:.1%} of what was computed",
        f"- {report.trained_parameters:,} trained parameters",
        f"- peak memory {report.peak_bytes / 2**20:.0f} MiB",
        *data,
        "",
    ]


def _plot(report: Report, folder: Path) -> None:
    names = [name for name in LOSSES if any(name in entry for entry in report.losses)]
    losses = {
        name.replace("_", " "): [
            (entry["step"], entry[name]) for entry in report.losses if name in entry
        ]
        for name in names
    }
    draw_curves(losses, "nats").savefig(folder / "losses.png", dpi=120)
    if report.retrieval:
        groups = {
            f"held-out {name}": {
                # One word a line: labels stand side by side, and are wider than their bars.
                label.replace(" ", "\n"): figures.mrr
                for label, figures in rows.items()
            }
            for name, rows in report.retrieval.items()
        }
        draw_bar_groups(groups, "MRR").savefig(folder / "retrieval.png", dpi=120)
