"""Data and recipes for tests of training: small, seeded, and quick to learn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import set_seed

from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.training.batches import StepDataset
from gem_rag.training.data import add_teacher, load_data
from gem_rag.training.recipe import Recipe, from_state
from gem_rag.training.scopes import load_trainable
from gem_rag.training.teacher import teacher_dim
from gem_rag.training.training_model import TrainingModel

TOPICS = ("fox", "index", "model", "dog", "line", "text", "vector", "passage", "answer", "token")
WORDS = (*TOPICS, "the", "a", "read", "some", "every")


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def some_text(rng: random.Random, most: int = 12) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, most)))


def write_texts(file: Path, count: int = 120) -> Path:
    rng = random.Random(0)
    return write_rows(file, ({"text": some_text(rng)} for _ in range(count)))


def write_pairs(file: Path, count: int = 120) -> Path:
    """Each document says its query's words again."""
    rng = random.Random(1)
    queries = [some_text(rng) for _ in range(count)]
    return write_rows(
        file,
        (
            {"query": q, "document": f"{q} {some_text(rng)}", "negatives": [some_text(rng)]}
            for q in queries
        ),
    )


def recipe(folder: Path, **changes: Any) -> Recipe:
    """Both losses on texts, 8 steps of 8, with data in a folder; `a__b` changes a.b."""
    state: dict[str, Any] = {
        "scope": "full",
        "max_length": 40,
        "next_token": {"raw": 0.5},
        "contrastive": {"drop": 0.2},
        "adapter": {"rank": 4},
        "schedule": {
            "steps": 8,
            "batch": 8,
            "learning_rate": 1e-2,
            "contrastive_from": 4,
            "ramp": 2,
        },
        "memory": {"tokens": 300},
        "evaluation": {"held_out": 0.1},
        "trainer": {"logging_steps": 1, "save_steps": 3},
    }
    if "data" not in changes:
        state["data"] = {"texts": {"path": str(write_texts(folder / "texts.jsonl"))}}
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = state
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return from_state(state, "test recipe")


def pairs_recipe(folder: Path, **changes: Any) -> Recipe:
    """Contrast on pairs with hard negatives."""
    source = {"path": str(write_pairs(folder / "pairs.jsonl")), "kind": "pairs", "negatives": 1}
    return recipe(folder, **{"data": {"pairs": source}, "next_token": None, **changes})


def prepared(recipe: Recipe, base: Path) -> tuple[TrainingModel, StepDataset]:
    """What a run trains, and on what."""
    checkpoint = open_checkpoint(base)
    set_seed(recipe.seed)
    path = checkpoint.path
    tokenizer = SafeTokenizer.from_folder(path)
    corpora = add_teacher(recipe, load_data(recipe, tokenizer)[0], tokenizer, path)
    trainable = load_trainable(recipe, checkpoint)
    return TrainingModel(trainable, recipe, teacher_dim(corpora)), StepDataset(recipe, corpora)
