"""What every evaluation gives: scores, kept in one file that reports and comparisons read.

Knows nothing about models, tasks or plots.
"""

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
from gem_rag.errors import InputError

Kind = Literal["embeddings", "generation", "retrieval", "answers"]
FORMAT = 1


@dataclass(frozen=True)
class Score:
    """One figure of one system on one task.

    kind: which of the things that decide it measures.
    task: what was done, by its usual name.
    metric: by its usual name, like "ndcg_at_10".
    system: who did it: a model's name, "BM25", ...
    value: larger is better, unless the metric is one of `LOWER_IS_BETTER`.
    items: the values of single queries, questions or samples in the data's order, whose mean the
        value is; empty where only the mean is known.
    low, high: 95 % confidence interval, where it is known.
    error: standard error, where it is known.
    group: of tasks that belong together, like mteb's task types.
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

    system: whose it is; other systems' scores are baselines.
    settings: what was asked for.
    timings: seconds by what was done.
    """

    system: str
    scores: tuple[Score, ...]
    missing: tuple[Missing, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    machine: str = ""

    def save(self, file: Path) -> None:
        """Write as JSON, there when it is whole."""
        state = {"gem-rag": __version__, "format": FORMAT, **dataclasses.asdict(self)}
        write_whole(file, json.dumps(state, indent=1) + "\n")

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


def merged(records: Sequence[Record]) -> Record:
    """Several evaluations of one system as one, later scores in the place of earlier ones.

    Raises InputError if they are of several systems.
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


def beside(own: Record, *others: Record) -> Record:
    """An evaluation with other systems' scores as baselines."""
    return dataclasses.replace(
        own,
        scores=(*own.scores, *(score for record in others for score in record.scores)),
        missing=tuple(dict.fromkeys(m for record in (own, *others) for m in record.missing)),
        settings={k: v for record in (*others, own) for k, v in record.settings.items()},
        timings={f"{k}: {r.system}" if r.system != own.system else k: v
                 for r in (own, *others) for k, v in r.timings.items()},
    )  # fmt: skip


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there when it is whole, and not before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def this_machine() -> str:
    """Processor or GPU, for beside figures."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
