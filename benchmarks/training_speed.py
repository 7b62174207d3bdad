"""Training throughput: GEM's objectives and plain causal fine-tuning by transformers' Trainer.

Same model, texts, batch, precision and optimizer, in one process, in turn, for several rounds; the
figure to quote is the median of the rounds' ratios. The baseline is Trainer as its documentation
uses it: padded batches by DataCollatorForLanguageModeling, all weights training. Tokens are those
that each method computes on, without padding; GEM's rows have special tokens and suffixes too.

    python benchmarks/training_speed.py [--model NAME] [--steps N] [--rounds N]
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from gem_rag.core.checkpoint import Checkpoint, open_checkpoint
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.documents.docstrings import docstrings
from gem_rag.training.batches import StepDataset, count_positions
from gem_rag.training.corpus import Corpus
from gem_rag.training.data import load_data
from gem_rag.training.recipe import Recipe, read_recipe
from gem_rag.training.scopes import load_trainable
from gem_rag.training.trainer import GemTrainer
from gem_rag.training.training_model import TrainingModel

BASELINE = "plain fine-tuning by Trainer"


def main(
    model: str = "gem-tiny", steps: int = 15, batch: int = 32, length: int = 128, rounds: int = 3
) -> None:
    """Print tokens per second, and their ratios to plain fine-tuning."""
    base = open_checkpoint(model)
    with tempfile.TemporaryDirectory() as folder:
        texts = write_texts(Path(folder) / "texts.jsonl", steps * batch)
        changes = {"max_length": length, "schedule.batch": batch, "evaluation.held_out": 0.0}
        paper = read_recipe("paper", changes).with_data([str(texts)]).scaled(steps)
        contrastive = dataclasses.replace(paper, next_token=None)
        recipes = {
            "next token (paper, p = 0.8)": dataclasses.replace(paper, contrastive=None),
            "contrastive (paper, token dropout)": contrastive,
            "contrastive, scope special": dataclasses.replace(contrastive, scope="special"),
        }
        corpora, _ = load_data(paper, SafeTokenizer.from_folder(base.path))
        speeds: dict[str, list[float]] = {BASELINE: [], **{name: [] for name in recipes}}
        for number in range(rounds + 1):
            round_speeds = {BASELINE: measure_baseline(base, corpora[0], steps, batch, folder)}
            for name, recipe in recipes.items():
                round_speeds[name] = measure_gem(base, recipe, corpora, folder)
            if number:  # the first is a warm-up
                for name, speed in round_speeds.items():
                    speeds[name].append(speed)
    table = Table("", "tokens/s", "of plain", title=f"{model}, {steps} steps of {batch} texts")
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(values, speeds[BASELINE], strict=True))
        table.add_row(name, f"{statistics.median(values):.0f}", f"{ratio:.2f}")
    console = Console()
    console.print(table)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    console.print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, bf16")


def write_texts(file: Path, count: int) -> Path:
    """Write docstrings of torch and transformers as rows of text."""
    import transformers

    rows: list[str] = []
    for package in (Path(torch.__file__).parent, Path(transformers.__file__).parent):
        for path in sorted(package.rglob("*.py")):
            try:
                rows += [d.text for d in docstrings(path.read_text()) if len(d.text) > 80]
            except (SyntaxError, ValueError):
                continue
            if len(rows) > 20 * count:
                break
    step = len(rows) // count
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows[::step][:count]))
    return file


def training_arguments(folder: str, steps: int, batch: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def measure_baseline(
    base: Checkpoint, corpus: Corpus, steps: int, batch: int, folder: str
) -> float:
    """Tokens per second of plain fine-tuning."""
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    rows = [{"input_ids": ids} for ids in corpus.rows["text"]]
    trainer = Trainer(
        model,
        training_arguments(folder, steps, batch),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    return sum(len(row["input_ids"]) for row in rows) / (time.perf_counter() - start)


def measure_gem(base: Checkpoint, recipe: Recipe, corpora: list[Corpus], folder: str) -> float:
    """Tokens per second of GEM training."""
    steps = StepDataset(recipe, corpora)
    arguments = training_arguments(folder, recipe.schedule.steps, recipe.schedule.batch)
    trainer = GemTrainer(TrainingModel(load_trainable(recipe, base), recipe), arguments, steps)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    return sum(count_positions(steps[i].passes)[0] for i in range(len(steps))) / seconds


if __name__ == "__main__":
    typer.run(main)
