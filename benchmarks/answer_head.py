"""What the head of an answer prompt costs retrieval where documents are read after it: the recipe
`special` with the same pairs, seed and number of steps, with `answer_head` and without.

Measured on docstrings of modules held out from all training: the summary line must find the rest of
its own. Documents are read as far as without a head.

    python benchmarks/answer_head.py [--base FOLDER] [--packages FOLDER] [--steps N] [--seed N ...]

Recorded rows are not trained again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from gem_tiny.docstring_pairs import load_docstring_pairs
from measuring import reciprocal_figures, record
from recipe_ablation import Data, plain_checkpoint

import gem_rag
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint
from gem_rag.core.config import GemConfig
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.evaluation.known_item import reciprocal_ranks
from gem_rag.generation.answer_prompt import answer_head
from gem_rag.pairs.pair import write_pairs
from gem_rag.training.recipe import read_recipe
from gem_rag.training.report_retrieval import similarities
from gem_rag.training.run import train

BASELINE = "no head"
# By row, the answer prompt whose head is read.
PROMPTS: dict[str, str | None] = {
    "Context": "Context:\n{passages}\n\nQuestion: {question}\nAnswer:",
    "instructions": None,
}


def main(
    base: str = "gem-tiny",
    packages: Annotated[Path | None, typer.Option(help="a folder of installed packages")] = None,
    work: Path = Path("build/answer-head"),
    steps: int = 180,
    batch: int = 64,
    length: Annotated[int, typer.Option(help="tokens of a document, without the head")] = 96,
    rate: float = 2e-3,
    count: Annotated[int, typer.Option(help="held-out docstrings")] = 1500,
    seed: Annotated[list[int], typer.Option()] = [0],  # noqa: B006
) -> None:
    """Train and record each row with each seed."""
    work.mkdir(parents=True, exist_ok=True)
    corpus = load_docstring_pairs(work / "pairs.jsonl", packages)
    data = Data.make(corpus, steps * batch, count, work)
    model = plain_checkpoint(open_checkpoint(base), work / "base")
    common = {
        "schedule.batch": batch, "schedule.learning_rate": rate, "query_length": 64,
        "adapter.rank": 32, "evaluation.held_out": 0.0, "trainer.dataloader_num_workers": 0,
    }  # fmt: skip
    settings = {"base": base, "batch": batch, "tokens_each": length, "docstrings": count}
    for number in seed:
        changes = {**common, "seed": number}
        without = ranks(data, model, {**changes, "max_length": length}, steps, work, BASELINE)
        for name, prompt in PROMPTS.items():
            head = with_answer_prompt(model, prompt, work / f"base {name}")
            tokens = head_tokens(head)
            own = {**changes, "max_length": length + tokens, "answer_head": True}
            found = ranks(data, head, own, steps, work, name)
            figures = reciprocal_figures(found, without, BASELINE)
            row = {"row": f"{name}, seed {number}", **settings, "head_tokens": tokens}
            own_mean = {f"mrr of {BASELINE}": round(sum(without) / len(without), 3)}
            record("answer_head", {**row, "steps": steps, **figures, **own_mean})


def with_answer_prompt(model: Checkpoint, prompt: str | None, folder: Path) -> Checkpoint:
    """The same language model with an answer prompt of its own."""
    if not folder.exists():
        shutil.copytree(model.path, folder)
        GemConfig(answer_prompt=prompt).save(folder)
    return open_checkpoint(folder)


def head_tokens(model: Checkpoint) -> int:
    """Tokens that a head adds to a text."""
    tokenizer = SafeTokenizer.from_folder(model.path)
    head = answer_head(tokenizer, model.config)
    return len(tokenizer.encode_prompted(head, ["text"])[0]) - tokenizer.count_tokens("text")


def ranks(
    data: Data, model: Checkpoint, changes: dict[str, Any], steps: int, work: Path, name: str
) -> list[float]:
    """Reciprocal ranks of the held-out documents after training."""
    known = work / f"{name}-{steps}-{changes['seed']}.json"
    if not known.exists():
        recipe = read_recipe("special", changes).scaled(steps)
        pairs, folder = work / "row.jsonl", work / "row"
        write_pairs(pairs, data.pairs[: steps * recipe.schedule.batch])
        for path in (folder, folder.with_name(folder.name + ".run")):
            shutil.rmtree(path, ignore_errors=True)
        train(recipe.with_data([str(pairs)]), model.path, folder, report=False)
        with gem_rag.load(folder) as gem:
            scores = similarities(gem, data.queries, data.documents)
        known.write_text(json.dumps(reciprocal_ranks(scores).tolist()))
    found: list[float] = json.loads(known.read_text())
    return found


if __name__ == "__main__":
    typer.run(main)
