"""Scores: what every evaluation gives, in one file that reports and comparisons read."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gem_rag import __version__
from gem_rag._utils.files import write_atomically
from gem_rag.errors import InputError

Kind = Literal["embeddings", "generation", "retrieval", "answers"]
FORMAT = 1


@dataclass(frozen=True)
class Score:
    """One figure of one system on one task.

    Attributes:
        kind: What it measures.
        task: The task's usual name.
        metric: The metric's usual name, like "ndcg_at_10".
        system: What was measured: a model's name, "BM25", ...
        value: Higher is better, unless the metric is one of `LOWER_IS_BETTER`.
        items: Values of single queries, questions or samples in the order of the data, whose mean
            the value is; empty if only the mean is known.
        low: Lower end of the 95 % confidence interval, if known.
        high: Its upper end, if known.
        error: Standard error, if known.
        group: Of tasks that belong together, like mteb's task types.
    """

    kind: Kind
    task: str
    metric: str
    system: str
    value: float
    items: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    error: float | None = None
    group: str = ""


LOWER_IS_BETTER = frozenset(
    {"seconds", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
)


@dataclass(frozen=True)
class Missing:
    """A task that could not be measured, and why, in one sentence."""

    kind: Kind
    task: str
    reason: str
    group: str = ""


@dataclass(frozen=True)
class Record:
    """An evaluation.

    Attributes:
        system: What was evaluated; the scores of other systems are baselines.
        scores: All scores.
        missing: Tasks that could not be measured.
        settings: Of the evaluation.
        timings: Seconds by what was done.
        machine: What it ran on.
    """

    system: str
    scores: tuple[Score, ...]
    missing: tuple[Missing, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    machine: str = ""

    def save(self, file: Path) -> None:
        """Write as JSON, atomically."""
        state = {"gem-rag": __version__, "format": FORMAT, **dataclasses.asdict(self)}
        write_atomically(file, json.dumps(state, indent=1) + "\n")

    @staticmethod
    def load(file: Path) -> Record:
        """Raises InputError if the file is none that `save` wrote."""
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            if state.pop("format") != FORMAT:
                raise InputError(f"{file} is of another version of gem-rag: evaluate again")
            state.pop("gem-rag")
            state["scores"] = tuple(
                Score(**{**score, "items": tuple(score["items"])}) for score in state["scores"]
            )
            state["missing"] = tuple(Missing(**missing) for missing in state["missing"])
            return Record(**state)
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{file} is no evaluation: give a scores.json that gem-rag eval wrote"
            ) from None


def merge_records(records: Sequence[Record]) -> Record:
    """Merge evaluations of one system; later scores replace earlier ones.

    Raises:
        InputError: They are of several systems.
    """
    systems = dict.fromkeys(record.system for record in records)
    if len(systems) != 1:
        raise InputError(f"these are evaluations of several systems: {', '.join(systems)}")
    scores = {(s.kind, s.task, s.metric, s.system): s for r in records for s in r.scores}
    measured = {(s.kind, s.task) for s in scores.values()}
    missing = {(m.kind, m.task): m for r in records for m in r.missing}
    return Record(
        system=records[0].system,
        scores=tuple(scores.values()),
        missing=tuple(m for key, m in missing.items() if key not in measured),
        settings={k: v for r in records for k, v in r.settings.items()},
        timings={k: v for r in records for k, v in r.timings.items()},
        machine=records[-1].machine,
    )


def with_baselines(own: Record, *others: Record) -> Record:
    """An evaluation with the scores of others as baselines."""
    return dataclasses.replace(
        own,
        scores=(*own.scores, *(score for record in others for score in record.scores)),
        missing=tuple(dict.fromkeys(m for record in (own, *others) for m in record.missing)),
        settings={k: v for record in (*others, own) for k, v in record.settings.items()},
        timings={f"{k}: {r.system}" if r.system != own.system else k: v
                 for r in (own, *others) for k, v in r.timings.items()},
    )  # fmt: skip


def this_machine() -> str:
    """The processor or GPU that figures were measured on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
