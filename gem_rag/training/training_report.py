"""What a training run gained and what it cost: figures before and after, as Markdown, JSON, plots.

Measures the checkpoint as it was saved, which users will load, not the model in memory.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.evaluation.baselines import mean_pooled
from gem_rag.evaluation.known_item import RetrievalFigures, drop_duplicates, evaluate_known_items
from gem_rag.evaluation.perplexity import PerplexityComparison, compare_perplexity
from gem_rag.evaluation.plots import draw_bar_groups, draw_curves
from gem_rag.model import Gem, load
from gem_rag.training.corpus import HeldOut
from gem_rag.training.recipe import Recipe

_LOSSES = ("next_token", "contrastive", "distill", "teacher")


@dataclass(frozen=True)
class Cost:
    """What training took.

    history: logged entries, each with step, losses, tokens, places and seconds since the last.
    peak_bytes: of memory; of the GPU where there is one, else of the process.
    """

    history: Sequence[Mapping[str, float]]
    processes: int
    peak_bytes: int
    trained_parameters: int
    device: str

    @property
    def seconds(self) -> float:
        return sum(entry["seconds"] for entry in self.history)

    @property
    def tokens(self) -> int:
        return int(sum(entry["tokens"] for entry in self.history))

    @property
    def padding(self) -> float:
        """Share of computed places that held no token."""
        return 1 - self.tokens / max(1.0, sum(entry["places"] for entry in self.history))


@dataclass(frozen=True)
class Report:
    """See the fields of its parts; `retrieval` is by data set, then by what was measured."""

    base: str
    out: str
    retrieval: dict[str, dict[str, RetrievalFigures]]
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
        """The report without its settings and pictures, for a terminal."""
        return "\n".join(_results(self))


def make_report(
    saved: Checkpoint,
    base: Checkpoint,
    recipe: Recipe,
    held_out: Sequence[HeldOut],
    cost: Cost,
    record: Mapping[str, Any],
) -> Report:
    """Measure, and write report.md, report.json and plots to the checkpoint's report folder."""
    losses = [
        {name: entry[name] for name in ("step", "loss", *_LOSSES) if name in entry}
        for entry in cost.history
    ]
    report = Report(
        base=base.name,
        out=saved.path.name,
        retrieval=measure_retrieval(saved, base, recipe.k, held_out),
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
    folder = saved.path / "report"
    folder.mkdir(exist_ok=True)
    state = json.dumps(dataclasses.asdict(report), indent=2)
    (folder / "report.json").write_text(state + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_markdown(report), encoding="utf-8")
    _plot(report, folder)
    return report


def measure_retrieval(
    saved: Checkpoint, base: Checkpoint, k: int, held_out: Sequence[HeldOut]
) -> dict[str, dict[str, RetrievalFigures]]:
    """Figures of the trained model, of the base as it was given, and of its mean pooling."""
    found: dict[str, dict[str, RetrievalFigures]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the base has not been trained is the point
        before = load(base.path, k=None if base.trained else k)
    with before, load(saved.path) as after:
        for part in held_out:
            pairs = part.pairs()
            if len(pairs) > 1:
                documents, right = drop_duplicates([document for _, document in pairs])
                texts = [query for query, _ in pairs], documents
                ids = [[before.tokenize(t)[: before.max_length] for t in group] for group in texts]
                pooled = mean_pooled(base.path, *ids)
                found[part.name] = {
                    "before": retrieval_figures(before, *texts, right),
                    "mean pooling before": evaluate_known_items(pooled[0] @ pooled[1].T, right),
                    "after": retrieval_figures(after, *texts, right),
                }
    return found


def retrieval_figures(
    gem: Gem, queries: list[str], documents: list[str], right: Sequence[int] | None = None
) -> RetrievalFigures:
    """Of queries that must find their document, `right` as for `evaluate_known_items`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # long texts are cut, for all alike
        return evaluate_known_items(
            gem.embed_queries(queries) @ gem.embed_documents(documents).T, right
        )


def measure_generation(
    saved: Checkpoint, base: Checkpoint, max_length: int, held_out: Sequence[HeldOut]
) -> PerplexityComparison | None:
    """Perplexity on held-out texts by the plain language models of both folders."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [
        AutoModelForCausalLM.from_pretrained(c.path, dtype=torch.float32).to(device).eval()
        for c in (base, saved)
    ]
    tokenizer = SafeTokenizer.from_folder(saved.path)
    encoded = tokenizer.encode([text for part in held_out for text in part.texts()])
    rows = [e.ids[:max_length] for e in encoded if len(e.ids) > 1]
    return compare_perplexity(models[0], models[1], rows) if rows else None


# -- showing -------------------------------------------------------------------------------------


def _markdown(report: Report) -> str:
    pictures = ["![losses](losses.png)", ""]
    if report.retrieval:
        pictures += ["![retrieval](retrieval.png)", ""]
    settings = ["## Settings", "", "```json", json.dumps(report.record, indent=2), "```", ""]
    return "\n".join([*_results(report), *pictures, *settings])


def _results(report: Report) -> list[str]:
    lines = [f"# {report.out}: GEM training of {report.base}", ""]
    for name, rows in report.retrieval.items():
        lines += [
            f"## Retrieval on held-out {name}",
            "",
            "| | R@1 | R@10 | MRR |",
            "|---|---|---|---|",
        ]
        for label, figures in rows.items():
            values = (figures.recall_1, figures.recall_10, figures.mrr)
            lines.append(f"| {label} | {' | '.join(f'{v:.3f}' for v in values)} |")
        lines += ["", f"{next(iter(rows.values())).queries} queries, one right document each.", ""]
    if report.generation:
        g = report.generation
        change = (
            "are equal, bit for bit"
            if g.logits_difference == 0
            else f"differ by at most {g.logits_difference:.3g}"
        )
        lines += [
            "## Generation on held-out text", "",
            "| | before | after |", "|---|---|---|",
            f"| perplexity per token | {g.before:.3f} | {g.after:.3f} |", "",
            f"{g.tokens} tokens. The logits of the base and of the trained model {change}.", "",
        ]  # fmt: skip
    minutes, seconds = divmod(round(report.seconds), 60)
    lines += [
        "## Cost", "",
        f"- {report.steps} steps in {minutes} min {seconds} s on {report.device}, "
        f"{report.processes} process{'es' if report.processes > 1 else ''}",
        f"- {report.tokens} tokens, {report.tokens_per_second:.0f} a second; "
        f"padding {report.padding:.1%} of what was computed",
        f"- {report.trained_parameters:,} trained parameters",
        f"- peak memory {report.peak_bytes / 2**20:.0f} MiB",
        *(f"- data {name}: {found['rows']} rows, {found['cut']} of them cut at the maximal length"
          for name, found in report.record["data"].items()), "",
    ]  # fmt: skip
    return lines


def _plot(report: Report, folder: Path) -> None:
    names = [name for name in _LOSSES if any(name in entry for entry in report.losses)]
    losses = {
        name.replace("_", " "): [
            (entry["step"], entry[name]) for entry in report.losses if name in entry
        ]
        for name in names
    }
    draw_curves(losses, "nats").savefig(folder / "losses.png", dpi=120)
    if report.retrieval:
        groups = {
            f"held-out {name}": {label: figures.mrr for label, figures in rows.items()}
            for name, rows in report.retrieval.items()
        }
        draw_bar_groups(groups, "MRR").savefig(folder / "retrieval.png", dpi=120)
