"""What each newer loss is worth: one change of the recipe `special` at a time, and all together.

Every row trains for the time that `--steps` steps of `special` take, on the same pairs, from the
same base and seed, and is measured on docstrings of modules held out from all training: the summary
line must find the rest of its own. First short runs of every row tell what its step costs, a
teacher's vectors included. Then every row trains for as many steps as fit, so that other work on
the machine delays a row and does not change it. Recorded rows are not trained again. Pairs have
negatives mined by BM25.

    python benchmarks/recipe_ablation.py --base FOLDER [--teacher FOLDER] [--packages FOLDER]
        [--steps N] [--row ...]

BASE is a plain language model that has not been GEM-trained; gem-tiny stands for the one it was
made from. TEACHER is a sentence-transformers model. Without --packages, there are only the standard
library's docstrings.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
import typer
from gem_tiny.docstring_pairs import DocstringPair, load_docstring_pairs
from gem_tiny.texts import is_held_out
from measuring import record
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint
from gem_rag.core.config import GemConfig
from gem_rag.pairs.negatives import mine_negatives
from gem_rag.pairs.pair import Pair, read_pairs, write_pairs
from gem_rag.pairs.searchers import bm25
from gem_rag.pairs.settings import PairSettings
from gem_rag.training.recipe import Recipe, read_recipe
from gem_rag.training.report_retrieval import retrieval_figures
from gem_rag.training.run import train

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
    "aligned with a teacher's vectors": ALIGN,
    "spread out": {"contrastive.spread": 0.1},
    "hardness": {**NEGATIVES, "contrastive.hardness": 1.0},
    "mean of the last three states": {"schedule.average": 3},
    "three quarters of the layers": {"layers": 0.75},
    "half of the layers": {"layers": 0.5},
    # The recipe of that name, and what it leaves out.
    "aligned": NEGATIVES,
    "aligned by a teacher": NEGATIVES,
    "all together": {
        **NEGATIVES,
        "contrastive.mask_same_source": True,
        "contrastive.spread": 0.1,
        "contrastive.hardness": 1.0,
        "layers": 0.75,
    },
}
FROM_ALIGNED = ("aligned", "aligned by a teacher", "all together")
TAUGHT = ("aligned with a teacher's vectors", "aligned by a teacher")


@dataclasses.dataclass(frozen=True)
class Data:
    """Pairs to train on, and queries and documents to measure on."""

    pairs: list[Pair]
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
        queries, documents = [p.summary for p in held_out], [p.rest for p in held_out]
        return cls(read_pairs(file), queries, documents)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What all rows share.

    Attributes:
        model: The language model that every row starts from.
        data: What it trains on and is measured on.
        common: Changes of every row's recipe.
        teacher: A sentence-transformers model, for the rows that need one.
        work: Folder of what is made on the way.
    """

    model: Checkpoint
    data: Data
    common: dict[str, Any]
    teacher: str
    work: Path

    def step_seconds(self, name: str, trial: int) -> float:
        """Time of a row's step by two short runs, with all that grows with the number of steps.

        On a CPU in seconds of all its cores, which other work on the machine does not change.
        """
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        file = self.work / f"{name}-{trial}-steps.json"
        if not file.exists():
            self.train(name, trial)  # what is imported and compiled once counts for no row
            times = [clock()]
            for steps in (trial, 2 * trial):
                self.train(name, steps)
                times.append(clock())
            first, second = times[1] - times[0], times[2] - times[1]
            file.write_text(json.dumps((second - first) / trial))
        return float(json.loads(file.read_text()))

    def train(self, name: str, steps: int) -> Path:
        """Train a row on as many pairs as its steps take, or all; the folder of the model."""
        recipe = self._recipe(name).scaled(steps)
        pairs, folder = self.work / "row.jsonl", self.work / "row"
        write_pairs(pairs, self.data.pairs[: steps * recipe.schedule.batch])
        for path in (folder, folder.with_name(folder.name + ".run")):
            shutil.rmtree(path, ignore_errors=True)
        train(recipe.with_data([str(pairs)]), self.model.path, folder, report=False)
        return folder

    def measure(self, folder: Path) -> dict[str, float]:
        """Retrieval of held-out docstrings by a trained model."""
        with gem_rag.load(folder) as gem:
            found = retrieval_figures(gem, self.data.queries, self.data.documents)
        return {name: round(getattr(found, name), 3) for name in ("recall_1", "recall_10", "mrr")}

    def _recipe(self, name: str) -> Recipe:
        changes = {**self.common, **ROWS[name]}
        if isinstance(share := changes.get("layers"), float):
            config = json.loads((self.model.path / "config.json").read_text())
            changes["layers"] = round(share * config["num_hidden_layers"])
        if name in TAUGHT:
            changes["contrastive.teacher"] = self.teacher
        return read_recipe("aligned" if name in FROM_ALIGNED else "special", changes)


def main(
    base: str = "gem-tiny",
    teacher: Annotated[str, typer.Option(help="sentence-transformers model")] = "",
    packages: Annotated[Path | None, typer.Option(help="a folder of installed packages")] = None,
    work: Path = Path("build/ablation"),
    steps: Annotated[int, typer.Option(help="of `special`; the others have its time")] = 270,
    trial: Annotated[int, typer.Option(help="steps of the shorter run that times a row")] = 12,
    batch: int = 64,
    length: int = 96,
    rate: float = 2e-3,
    most: Annotated[int, typer.Option(help="pairs to train on")] = 20_000,
    count: Annotated[int, typer.Option(help="held-out docstrings")] = 1500,
    row: Annotated[list[str] | None, typer.Option(help="only these rows")] = None,
) -> None:
    """Time every row, then train and record it."""
    work.mkdir(parents=True, exist_ok=True)
    data = Data.make(load_docstring_pairs(work / "pairs.jsonl", packages), most, count, work)
    common = {
        "schedule.batch": batch, "schedule.learning_rate": rate, "max_length": length,
        "query_length": 64, "adapter.rank": 32, "evaluation.held_out": 0.0,
        "trainer.dataloader_num_workers": 0,
    }  # fmt: skip
    model = plain_checkpoint(open_checkpoint(base), work / "base")
    ablation = Ablation(model, data, common, teacher, work)
    names = row or [name for name in ROWS if teacher or name not in TAUGHT]
    seconds = {name: ablation.step_seconds(name, trial) for name in ("special", *names)}
    unit = "step_seconds" if torch.cuda.is_available() else "step_cpu_seconds"
    settings = {"base": base, "batch": batch, "tokens_each": length, "docstrings": count}
    for name in names:
        file = work / f"{name}-{steps}.json"
        if not file.exists():
            fit = round(steps * seconds["special"] / seconds[name])
            figures = ablation.measure(ablation.train(name, fit))
            figures = {unit: round(seconds[name], 3), "steps": fit, **figures}
            file.write_text(json.dumps(figures))
            record("recipe_ablation", {"row": name, **settings, **figures})


def plain_checkpoint(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """A checkpoint's language model without its special tokens."""
    if checkpoint.trained and not folder.exists():
        AutoModelForCausalLM.from_pretrained(checkpoint.path).save_pretrained(folder)
        for file in checkpoint.path.glob("tokenizer*"):
            shutil.copy(file, folder)
    plain = open_checkpoint(folder) if checkpoint.trained else checkpoint
    assert plain.config == GemConfig(), plain.config
    return plain


if __name__ == "__main__":
    typer.run(main)
