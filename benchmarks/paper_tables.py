"""The GEM paper's ablations (its tables 2, 3 and 4), and the three scopes, on a small model.

Trains a model once for each row, on docstrings, and measures it on docstrings of modules held out
from all training: the summary line must find the rest of its own. Every row has the same steps,
batch, data and seed. Finished rows are kept and not trained again.

    python benchmarks/paper_tables.py --base FOLDER --packages FOLDER [--steps N] [--table NAME]

BASE is a plain language model that has not been GEM-trained; gem-tiny stands for the one it was
made from. The packages are those of models/gem-tiny/gem_tiny/packages.txt.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from gem_tiny.docstring_pairs import DocstringPair, load_docstring_pairs
from gem_tiny.files import write_jsonl
from gem_tiny.texts import is_held_out
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint
from gem_rag.core.encoder import GemEncoder
from gem_rag.core.layout import Layout, Row
from gem_rag.evaluation.baselines import mean_pooled
from gem_rag.evaluation.known_item import evaluate_known_items
from gem_rag.training.corpus import HeldOut
from gem_rag.training.recipe import Source, read_recipe
from gem_rag.training.report_retrieval import retrieval_figures
from gem_rag.training.run import train
from gem_rag.training.sources import read_source
from gem_rag.training.trainer import latest_checkpoint
from gem_rag.training.training_report import measure_generation

# Changes to the bundled recipes, besides learning rates: docstrings are short, and the data to
# measure on is separate.
COMMON_CHANGES = {"max_length": 64, "evaluation.held_out": 0.0}


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained row: a bundled recipe and changes to it."""

    recipe: str
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return "-".join(
            [self.recipe, *(f"{k.split('.')[-1]}={v}" for k, v in self.changes.items())]
        )


def define_tables(learning_rate: float) -> dict[str, dict[str, Run]]:
    """Tables and their rows."""
    rates = {
        "schedule.learning_rate": learning_rate,
        "schedule.contrastive_learning_rate": learning_rate / 3,
    }
    both = Run("paper", rates)

    def next_token(p: float) -> Run:
        return Run("paper", {**rates, "contrastive": None, "next_token.raw": p})

    def pairs(scope: str) -> Run:
        # Adapters and special tokens need larger learning rates than whole models.
        scope_rate = learning_rate if scope == "full" else 1e-3
        batch = {"schedule.batch": 64, "query_length": 64}
        return Run("special", {"scope": scope, "schedule.learning_rate": scope_rate, **batch})

    return {
        "objectives (table 3)": {
            "mixed next token": next_token(0.8),
            "mixed next token, then contrastive": both,
        },
        "k, both objectives (table 4)": {
            "k = 1": both,
            **{f"k = {k}": Run("paper", {**rates, "k": k}) for k in (2, 5, 10)},
        },
        "p, next token only (table 2)": {
            f"p = {p}": next_token(p) for p in (0.8, 0.0, 0.2, 0.4, 0.6, 0.9, 0.95, 0.99)
        },
        "scopes, contrastive on pairs": {s: pairs(s) for s in ("full", "lora", "special")},
    }


def main(
    base: Annotated[str, typer.Option(help="a plain language model")] = "gem-tiny",
    packages: Annotated[Path | None, typer.Option(help="a folder of installed packages")] = None,
    work: Annotated[Path, typer.Option(help="data and trained models")] = Path("build/tables"),
    steps: int = 200,
    rate: Annotated[float, typer.Option(help="of next-token steps; contrastive a third")] = 1e-3,
    count: Annotated[int, typer.Option(help="held-out docstrings")] = 1500,
    table: Annotated[str, typer.Option(help="only tables whose name holds this")] = "",
) -> None:
    """Train every row that is not there yet; print the tables and write them to WORK."""
    corpus = load_docstring_pairs(work / "pairs.jsonl", packages)
    data = Data.write(corpus, count, work)
    model = open_checkpoint(base)
    console = Console()
    tables = []
    for title, rows in define_tables(rate).items():
        if table in title:
            figures = measure_untrained(model, data, work)
            for label, run in rows.items():
                figures[label] = train_and_measure(run, model, data, work, steps)
            tables.append(draw_table(f"{title}; {steps} steps", figures))
            console.print(tables[-1])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    with (work / "tables.txt").open("w") as file:
        text = Console(width=100, file=file)
        for drawn in tables:
            text.print(drawn)
        text.print(f"{model.name}, {device}, {torch.get_num_threads()} threads, {steps} steps")


@dataclasses.dataclass(frozen=True)
class Data:
    """Files to train on; queries (summary lines), documents (the rests) and texts to measure on."""

    texts: Path
    pairs: Path
    queries: list[str]
    documents: list[str]
    held_out: HeldOut

    @classmethod
    def write(cls, corpus: list[DocstringPair], count: int, work: Path) -> Data:
        """Split a corpus and write its files."""
        training = [pair for pair in corpus if not is_held_out(pair.module)]
        held_out = [pair for pair in corpus if is_held_out(pair.module)][:count]
        texts, pairs, whole = (work / f"{name}.jsonl" for name in ("texts", "pairs-train", "whole"))
        write_jsonl(texts, ({"text": f"{p.summary}\n\n{p.rest}"} for p in training))
        write_jsonl(pairs, ({"query": p.summary, "document": p.rest} for p in training))
        write_jsonl(whole, ({"text": f"{p.summary}\n\n{p.rest}"} for p in held_out[::3]))
        rows = HeldOut("docstrings", "text", read_source("whole", Source(str(whole))))
        queries, documents = [p.summary for p in held_out], [p.rest for p in held_out]
        return cls(texts, pairs, queries, documents, rows)


def train_and_measure(
    run: Run, base: Checkpoint, data: Data, work: Path, steps: int
) -> dict[str, float]:
    """Figures of a row, which is trained now unless it has been."""
    out = work / f"{run.name}-{steps}"
    file = work / f"{out.name}.json"
    if not file.exists():
        source = data.texts if run.recipe == "paper" else data.pairs
        recipe = read_recipe(run.recipe, {**COMMON_CHANGES, **run.changes}).with_data([str(source)])
        resume = latest_checkpoint(out.with_name(out.name + ".run")) is not None
        start = time.perf_counter()
        if not out.exists():
            train(recipe.scaled(steps), base.path, out, resume=resume, progress=True, report=False)
        seconds = time.perf_counter() - start
        saved = open_checkpoint(out)
        generation = measure_generation(saved, base, 128, [data.held_out])
        assert generation is not None
        with gem_rag.load(saved.path) as gem:
            retrieval = retrieval_figures(gem, *truncate_texts(gem, data))
        figures = {
            "R@1": retrieval.recall_1,
            "R@10": retrieval.recall_10,
            "MRR": retrieval.mrr,
            "perplexity": generation.after,
            "logits differ by": generation.logits_difference,
            "minutes": seconds / 60,
        }
        file.write_text(json.dumps(figures))
    return dict(json.loads(file.read_text()))


def measure_untrained(base: Checkpoint, data: Data, work: Path) -> dict[str, dict[str, float]]:
    """Figures of the base: by mean pooling, the usual embedding of an untrained model, and by a
    special token that has not been trained."""
    file = work / "untrained.json"
    if not file.exists():
        generation = measure_generation(base, base, 128, [data.held_out])
        assert generation is not None
        plain = {"perplexity": generation.before, "logits differ by": 0.0}
        with gem_rag.load(base.path) as gem:
            ids = [[gem.tokenize(text) for text in texts] for texts in truncate_texts(gem, data)]
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
        encoder = GemEncoder(model, k=1).eval()
        vectors = {
            "untrained, mean pooling": mean_pooled(base.path, *ids),
            "untrained, special token": [embed_by_special_token(encoder, rows) for rows in ids],
        }
        figures = {}
        for name, (queries, documents) in vectors.items():
            f = evaluate_known_items(queries @ documents.T)
            figures[name] = {"R@1": f.recall_1, "R@10": f.recall_10, "MRR": f.mrr, **plain}
        file.write_text(json.dumps(figures))
    return dict(json.loads(file.read_text()))


@torch.inference_mode()
def embed_by_special_token(encoder: GemEncoder, ids: list[list[int]]) -> np.ndarray:
    return np.concatenate([encoder(Layout.build([Row.whole(row)], 1)).numpy() for row in ids])


def truncate_texts(gem: gem_rag.Gem, data: Data) -> tuple[list[str], list[str]]:
    """Beginnings of queries and documents, so that every method reads the same words."""
    queries = [gem.tokenizer.decode(gem.tokenize(text)[:64]) for text in data.queries]
    documents = [gem.tokenizer.decode(gem.tokenize(text)[:128]) for text in data.documents]
    return queries, documents


def draw_table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    columns = list(next(reversed(rows.values())))
    table = Table("", *columns, title=title)
    for name, figures in rows.items():
        table.add_row(name, *(f"{figures[c]:.3f}" if c in figures else "" for c in columns))
    return table


if __name__ == "__main__":
    typer.run(main)
