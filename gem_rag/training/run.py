"""A training run from a recipe to a checkpoint and a report; resumable.

OUT          the trained model, an ordinary folder, there when the run has ended
OUT/report   what it gained and what it cost
OUT.run      the run's state: run.json (recipe and data hashes), checkpoint-N, logs
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from gem_rag.core.encoder import max_text_tokens
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import GemError, InputError
from gem_rag.training.batches import StepDataset
from gem_rag.training.corpus import Corpus
from gem_rag.training.data import load_data
from gem_rag.training.recipe import Recipe, hash_state, upgrade_keys
from gem_rag.training.scopes import prepare, trained_state
from gem_rag.training.trainer import GemTrainer, latest_checkpoint
from gem_rag.training.training_model import TrainingModel
from gem_rag.training.training_report import Cost, Report, make_report


class InterruptedRunError(GemError):
    """The run was stopped by a signal; its state is saved."""

    exit_code = 130


def train(
    recipe: Recipe,
    model: str | Path,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = False,
    report: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> Report | None:
    """Train, save and measure; with several processes (torchrun), each calls this.

    Args:
        recipe: The recipe, with the paths of its data.
        model: The model to start from: a bundled name, a folder or a hub name.
        out: Where the trained model goes; must not exist.
        resume: Continue from the last saved state of the same run.
        progress: Whether to show progress bars.
        report: Measure before and after, and write the report.
        callbacks: transformers' callbacks.

    Returns:
        The report, in the main process.

    Raises:
        InputError: Something cannot be trained on.
        InterruptedRunError: A signal ended the run; its state is saved.
        GemError: The loss is not a number, or the disk is full; the last saved state stays.
    """
    (datasets.enable_progress_bars if progress else datasets.disable_progress_bars)()
    base = open_checkpoint(model)
    if out.exists():
        raise InputError(f"{out} exists already: choose another name, or remove it")
    state = out.with_name(out.name + ".run")
    arguments = _arguments(recipe, state)
    longest = max_text_tokens(AutoConfig.from_pretrained(base.path), recipe.k)
    recipe = _limit_length(recipe, base.name, longest)
    tokenizer = SafeTokenizer.from_folder(base.path)
    with arguments.main_process_first():
        corpora, measured = load_data(recipe, tokenizer)
    record = _record(recipe, base, corpora)
    if arguments.process_index == 0:
        _check_state(state, record, resume)
    last = latest_checkpoint(state) if resume else None
    set_seed(recipe.seed)
    steps = StepDataset(
        recipe,
        corpora,
        arguments.world_size,
        arguments.process_index,
        max_positions=longest + recipe.k,
    )
    trainer = GemTrainer(
        TrainingModel(prepare(recipe, base), recipe), arguments, steps, callbacks, progress
    )
    trainer.train(resume_from_checkpoint=last and str(last))
    cost = _cost(trainer)
    if trainer.interruption.signal is not None:
        raise InterruptedRunError(
            f"interrupted after step {trainer.state.global_step} of {recipe.schedule.steps}, saved "
            f"in {state}: go on with the same command and --resume"
        )
    if arguments.process_index != 0:
        return None
    del trainer
    saved = save_trained(recipe, base, state, out)
    if not report:
        return None
    return make_report(saved, base, recipe, measured, cost, record)


def save_trained(recipe: Recipe, base: Checkpoint, state: Path, out: Path) -> Checkpoint:
    """Make a checkpoint of a run's last state, which has only the weights that trained."""
    last = latest_checkpoint(state)
    assert last is not None, state
    trainable = prepare(recipe, base)
    trained = load_file(last / "model.safetensors")
    state_dict = {name.removeprefix("encoder."): t for name, t in trained.items()}
    trainable.encoder.load_state_dict(state_dict, strict=False)
    base_dtype = AutoConfig.from_pretrained(base.path).dtype or torch.float32
    dtype = base_dtype if recipe.save_dtype == "auto" else getattr(torch, recipe.save_dtype)
    tokens = {n: t.to(dtype) for n, t in trainable.encoder.special.tensors().items()}
    config = dataclasses.replace(
        base.config,
        k=recipe.k,
        pooling=recipe.pooling,
        scope=recipe.scope,
        tokens=(),
        prompts=recipe.prompts,
        max_length=recipe.max_length,
        adapter=trainable.encoder.adapter,
        base_model=base.config.base_model or Path(base.name).name,
    )
    weights = None if recipe.scope == "special" else partial(trainable.save_weights, dtype=dtype)
    return save_checkpoint(out, base.path, config, tokens, weights)


# -- what a run needs ----------------------------------------------------------------------------


def _arguments(recipe: Recipe, state: Path) -> TrainingArguments:
    """Trainer's settings: ours, and the recipe's `trainer` over them."""
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for name in recipe.trainer:
        if name not in known:
            raise InputError(
                f"trainer.{name} is no setting of transformers' TrainingArguments"
                f"{did_you_mean(name, known)}"
            )
    steps = recipe.schedule.steps
    on_cpu = not torch.accelerator.is_available()
    settings: dict[str, Any] = {
        "output_dir": str(state),
        "max_steps": steps,
        "learning_rate": recipe.schedule.learning_rate,
        "seed": recipe.seed,
        "logging_steps": max(1, steps // 100),
        "save_steps": max(1, steps // 5),
        "save_total_limit": 2,
        "report_to": "none",
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        # StepDataset of one loss leave what only the other needs without gradients.
        "ddp_find_unused_parameters": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        **recipe.trainer,
    }
    try:
        arguments = TrainingArguments(**settings)
    except (TypeError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"the recipe's trainer settings cannot be used: {reason}") from None
    if arguments.save_total_limit is not None and arguments.save_total_limit < 2:
        raise InputError("trainer.save_total_limit must be at least 2: the last whole state has to "
                         "stay while the next is written")  # fmt: skip
    # One process drives one device: many devices take many processes (torchrun).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    batch = recipe.schedule.batch
    arguments.per_device_train_batch_size = max(1, batch // arguments.world_size)
    return arguments


def _limit_length(recipe: Recipe, name: str, longest: int) -> Recipe:
    """The recipe with no longer texts than the model reads."""
    if recipe.max_length <= longest:
        return recipe
    warnings.warn(
        f"{name} reads texts of {longest} tokens: max_length {recipe.max_length} counts as "
        f"{longest}",
        stacklevel=3,
    )
    return dataclasses.replace(recipe, max_length=longest)


# -- the run's state -----------------------------------------------------------------------------


def _record(recipe: Recipe, base: Checkpoint, corpora: Sequence[Corpus]) -> dict[str, Any]:
    """What decides the outcome of a run; the number of processes does not."""
    return {
        "recipe": recipe.state(),
        "recipe_hash": recipe.hash(),
        "base": base.fingerprint(),
        "data": {c.name: {"hash": c.hash(), "rows": len(c.rows), "cut": c.cut} for c in corpora},
    }


def _check_state(state: Path, record: Mapping[str, Any], resume: bool) -> None:
    """Write the run's record, or compare with the one that is to be resumed."""
    file = state / "run.json"
    if not resume:
        if latest_checkpoint(state):
            raise InputError(f"{state} holds the state of a run: go on with --resume, or remove it")
        state.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return
    if not file.exists():
        raise InputError(f"there is nothing to resume: {state} holds no run; leave --resume out")
    before = _upgrade_record(json.loads(file.read_text(encoding="utf-8")), str(file))
    change = next(_differences(before, dict(record)), None)
    if change:
        name, new, old = change
        raise InputError(
            f"{state} was begun with another {name} ({old!r}, now {new!r}): resume with the same "
            "settings, or begin anew with another --out"
        )


def _upgrade_record(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A run's record with the recipe's keys under their present names."""
    recipe = upgrade_keys(record["recipe"], where, warn=False)
    if recipe == record["recipe"]:
        return record
    return {**record, "recipe": recipe, "recipe_hash": hash_state(recipe)}


def _differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, now, before) of all that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            where = f"{place}.{key}" if place else key
            yield from _differences(before.get(key), now.get(key), where)
    elif before != now:
        yield place, now, before


def _cost(trainer: GemTrainer) -> Cost:
    if torch.cuda.is_available():
        device, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    else:
        device = f"{platform.machine()}, {torch.get_num_threads()} threads"
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Cost(
        history=[entry for entry in trainer.state.log_history if "tokens" in entry],
        processes=trainer.args.world_size,
        peak_bytes=peak,
        trained_parameters=sum(t.numel() for t in trained_state(trainer.model).values()),
        device=device,
    )
