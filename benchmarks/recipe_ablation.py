"""What each newer loss is worth: one change of the recipe `special` at a time, and all together.

Every row trains for the same time on the same pairs, from the same base and seed, and is measured
on docstrings of modules held out from all training: the summary line must find the rest of its own.
Rows that are recorded are not trained again. Pairs have negatives mined by BM25.

    python benchmarks/recipe_ablation.py --base FOLDER [--packages FOLDER] [--minutes N] [--row ...]

BASE is a plain language model that has not been GEM-trained; gem-tiny stands for the one it was
made from. Without --packages, the docstrings are those of the packages that are installed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from gem_tiny.docstring_pairs import DocstringPair, load_docstring_pairs
from gem_tiny.texts import is_held_out
from measuring import record
from transformers import AutoModelForCausalLM, TrainerCallback

import gem_rag
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint
from gem_rag.core.config import GemConfig
from gem_rag.pairs.negatives import mine_negatives
from gem_rag.pairs.pair import Pair, write_pairs
from gem_rag.pairs.searchers import bm25
from gem_rag.pairs.settings import PairSettings
from gem_rag.training.recipe import Recipe, read_recipe
from gem_rag.training.report_retrieval import retrieval_figures
from gem_rag.training.run import train

_TRIAL_STEPS = 6
NEGATIVES = {"data.pairs.negatives": 1}
ALIGN = {"contrastive.teacher": "base", "contrastive.teacher_weight": 0.0, "contrastive.align": 1.0}
ROWS: dict[str, dict[str, Any]] = {
    "special": {},
    "mined negatives": NEGATIVES,
    "margin for false negatives": {"contrastive.false_negative_margin": 0.1},
    "mask same source": {"contrastive.mask_same_source": True},
    "both ways": {"contrastive.both_ways": True},
    "temperature .05 to .02": {"contrastive.temperature": {"initial": 0.05, "least": 0.02}},
    "aligned with the base's vectors": ALIGN,
    "spread out": {"contrastive.spread": 0.1},
    "hardness": {**NEGATIVES, "contrastive.hardness": 1.0},
    "mean of the last three states": {"schedule.average": 3},
    "three quarters of the layers": {"layers": 0.75},
    "half of the layers": {"layers": 0.5},
    "all together": {
        **NEGATIVES,
        **ALIGN,
        "contrastive.false_negative_margin": 0.1,
        "contrastive.both_ways": True,
        "contrastive.temperature": {"initial": 0.05, "least": 0.02},
        "schedule.average": 3,
    },
}


@dataclasses.dataclass(frozen=True)
class Data:
    """Where pairs are, and queries and documents to measure on."""

    pairs: Path
    queries: list[str]
    documents: list[str]

    @classmethod
    def make(cls, corpus: list[DocstringPair], most: int, count: int, work: Path) -> Data:
        """Split a corpus, and mine negatives for what is trained on."""
        held_out = [pair for pair in corpus if is_held_out(pair.module)][:count]
        file = work / "pairs-train.jsonl"
        if not file.exists():
            pairs = [
                Pair(p.summary, p.rest, "summary", p.module, f"{p.module}.{p.name}")
                for p in corpus
                if not is_held_out(p.module)
            ]
            pairs = Random(0).sample(pairs, min(most, len(pairs)))
            write_pairs(file, mine_negatives(pairs, [bm25], PairSettings(negatives=1)))
        return cls(file, [pair.summary for pair in held_out], [pair.rest for pair in held_out])


def main(
    base: str = "gem-tiny",
    packages: Annotated[Path | None, typer.Option(help="a folder of installed packages")] = None,
    work: Path = Path("build/ablation"),
    minutes: Annotated[float, typer.Option(help="of training for each row")] = 4.0,
    batch: int = 64,
    length: int = 96,
    rate: float = 2e-3,
    most: Annotated[int, typer.Option(help="pairs to train on")] = 20_000,
    count: Annotated[int, typer.Option(help="held-out docstrings")] = 1500,
    row: Annotated[list[str] | None, typer.Option(help="only these rows")] = None,
) -> None:
    """Train and record every row."""
    work.mkdir(parents=True, exist_ok=True)
    data = Data.make(load_docstring_pairs(work / "pairs.jsonl", packages), most, count, work)
    model = _plain(open_checkpoint(base), work / "base")
    common = {
        "schedule.batch": batch, "schedule.learning_rate": rate, "max_length": length,
        "query_length": 64, "adapter.rank": 32, "evaluation.held_out": 0.0,
        "trainer.dataloader_num_workers": 0,
    }  # fmt: skip
    for name in row or list(ROWS):
        file = work / f"{name.replace(' ', '-')}-{minutes:g}.json"
        if not file.exists():
            recipe = _recipe({**common, **ROWS[name]}, model, data.pairs)
            figures = _train_and_measure(recipe, model, data, work / "row", minutes)
            file.write_text(json.dumps(figures))
            settings = {"base": base, "minutes": minutes, "batch": batch, "tokens_each": length}
            record("recipe_ablation", {"row": name, **settings, **figures})


def _plain(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """A checkpoint's language model without its special tokens."""
    if checkpoint.trained and not folder.exists():
        AutoModelForCausalLM.from_pretrained(checkpoint.path).save_pretrained(folder)
        for file in checkpoint.path.glob("tokenizer*"):
            shutil.copy(file, folder)
    plain = open_checkpoint(folder) if checkpoint.trained else checkpoint
    assert plain.config == GemConfig(), plain.config
    return plain


def _recipe(changes: dict[str, Any], model: Checkpoint, pairs: Path) -> Recipe:
    if isinstance(share := changes.get("layers"), float):
        config = json.loads((model.path / "config.json").read_text())
        changes["layers"] = round(share * config["num_hidden_layers"])
    return read_recipe("special", changes).with_data([str(pairs)])


def _train_and_measure(
    recipe: Recipe, model: Checkpoint, data: Data, folder: Path, minutes: float
) -> dict[str, Any]:
    """Train for so long, as a trial of a few steps says how many that are; measure."""
    trial = _run(recipe.scaled(_TRIAL_STEPS), model, folder)
    per_step = (trial[-1] - trial[0]) / (_TRIAL_STEPS - 1)
    steps = max(_TRIAL_STEPS, round(60 * minutes / per_step))
    times = _run(recipe.scaled(steps), model, folder)
    with gem_rag.load(folder) as gem:
        found = retrieval_figures(gem, data.queries, data.documents)
    return {
        "steps": steps,
        "seconds": round(times[-1] - times[0], 1),
        "recall_1": round(found.recall_1, 3),
        "recall_10": round(found.recall_10, 3),
        "mrr": round(found.mrr, 3),
    }


class _Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


def _run(recipe: Recipe, model: Checkpoint, folder: Path) -> list[float]:
    """Train into a folder; when each step ended."""
    for path in (folder, folder.with_name(folder.name + ".run")):
        shutil.rmtree(path, ignore_errors=True)
    clock = _Clock()
    train(recipe, model.path, folder, report=False, callbacks=[clock])
    return clock.times


if __name__ == "__main__":
    typer.run(main)
