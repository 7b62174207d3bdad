"""A training run, from a recipe to a checkpoint and a report; it can be resumed.

| path | content |
|---|---|
| OUT | the trained model, written when the run has ended |
| OUT/report | what training gained and what it cost |
| OUT.run | the run's state: run.json (recipe, and hashes of recipe and data), checkpoint-N, logs |
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
from torch import Tensor
from transformers import AutoConfig, TrainerCallback, TrainingArguments, set_seed

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint, save_adapter, save_checkpoint
from gem_rag.core.encoder import max_text_tokens_before_loading
from gem_rag.core.passes import count_layers
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import GemError, InputError
from gem_rag.generation.answer_prompt import answer_head
from gem_rag.training.batches import StepDataset
from gem_rag.training.card import write_card
from gem_rag.training.corpus import Corpus
from gem_rag.training.data import add_teacher, load_data
from gem_rag.training.made_pairs import PairMaker
from gem_rag.training.recipe import Recipe, from_state
from gem_rag.training.renamed_keys import upgrade_keys
from gem_rag.training.scopes import (
    load_trainable,
    settle_special_tokens,
    trainable_state_dict,
    trains_in_bfloat16,
)
from gem_rag.training.teacher import teacher_dim
from gem_rag.training.trainer import GemTrainer, complete_checkpoints, latest_checkpoint
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
    full: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> Report | None:
    """Train, save and measure. With several processes (torchrun), each of them calls this.

    Args:
        recipe: The recipe, with the paths of its data.
        model: The model to start from: a bundled name, a folder or a hub name.
        out: Where the trained model goes; must not exist.
        resume: Continue from the last saved state of the same run.
        progress: Whether to show progress bars.
        report: Measure before and after, and write the report.
        full: Write a whole model in the scopes `special` and `lora` too, not the adapter alone.
        callbacks: transformers' callbacks.

    Returns:
        The report; None in processes other than the main one, or without `report`.

    Raises:
        InputError: Something cannot be trained on.
        InterruptedRunError: A signal ended the run; its state is saved.
        GemError: The loss is not a number, or the disk is full; the last saved state stays.
    """
    (datasets.enable_progress_bars if progress else datasets.disable_progress_bars)()
    base = open_checkpoint(model)
    if out.exists():
        raise InputError(f"{out} exists already: choose another name, or remove it")
    run_folder = out.with_name(out.name + ".run")
    arguments = _training_arguments(recipe, run_folder)  # checked before anything takes long
    if recipe.trainer.get("bf16") and not trains_in_bfloat16(recipe):
        warnings.warn(
            "this device has no instructions for bfloat16, so training runs in float32",
            stacklevel=2,
        )
    config = AutoConfig.from_pretrained(base.path, trust_remote_code=False)
    count_layers(config, recipe.layers)  # before data are read
    model_limit = max_text_tokens_before_loading(config, recipe.k)
    recipe = settle_special_tokens(_limit_length(recipe, base.name, model_limit), base)
    tokenizer = SafeTokenizer.from_folder(base.path)
    recipe = _settle_answer_head(recipe, base, tokenizer)
    with arguments.main_process_first():
        maker = PairMaker(base, run_folder, resume or arguments.process_index > 0, progress)
        corpora, held_out = load_data(recipe, tokenizer, maker)
    recipe = _limit_epochs(recipe, corpora)
    record = _build_record(recipe, base, corpora)
    corpora = add_teacher(recipe, corpora, tokenizer, base.path)
    if arguments.process_index == 0:
        _write_or_check_record(run_folder, record, resume)
    last = latest_checkpoint(run_folder) if resume else None
    arguments = _training_arguments(recipe, run_folder)
    set_seed(recipe.seed)
    steps = StepDataset(
        recipe,
        corpora,
        arguments.world_size,
        arguments.process_index,
        max_positions=model_limit + recipe.k,
    )
    aligns = recipe.contrastive is not None and recipe.contrastive.align > 0
    length = teacher_dim(corpora) if aligns else None  # other losses take vectors of any length
    trainable = load_trainable(recipe, base)
    if trainable.left_out:
        warnings.warn(
            f"{base.name} has layers without adapters: {trainable.left_out}", stacklevel=2
        )
    training_model = TrainingModel(trainable, recipe, length)
    trainer = GemTrainer(training_model, arguments, steps, callbacks, progress)
    trainer.train(resume_from_checkpoint=last and str(last))
    cost = _measure_cost(trainer)
    if trainer.interruption.signal is not None:
        raise InterruptedRunError(
            f"interrupted after step {trainer.state.global_step} of {recipe.schedule.steps}, saved "
            f"in {run_folder}: go on with the same command and --resume"
        )
    if arguments.process_index != 0:
        return None
    dim = training_model.encoder.dim
    del training_model, trainer
    saved = save_trained(recipe, base, run_folder, out, full)
    made = make_report(saved, base, recipe, held_out, cost, record) if report else None
    write_card(saved, recipe, dim, made)
    return made


def _settle_answer_head(recipe: Recipe, base: Checkpoint, tokenizer: SafeTokenizer) -> Recipe:
    """A recipe whose document prompt is the head of the base's answers, if it asks for that."""
    if not recipe.answer_head:
        return recipe
    prompts = {**recipe.prompts, "document": answer_head(tokenizer, base.config)}
    return dataclasses.replace(recipe, prompts=prompts, answer_head=False)


def save_trained(
    recipe: Recipe, base: Checkpoint, run_folder: Path, out: Path, full: bool = False
) -> Checkpoint:
    """Write a checkpoint from a run's last states, which have only the weights that train."""
    trainable = load_trainable(recipe, base)
    weights = _mean_state(complete_checkpoints(run_folder)[-recipe.schedule.average :])
    state_dict = {name.removeprefix("encoder."): tensor for name, tensor in weights.items()}
    trainable.encoder.load_state_dict(state_dict, strict=False)
    base_dtype = (
        AutoConfig.from_pretrained(base.path, trust_remote_code=False).dtype or torch.float32
    )
    dtype = base_dtype if recipe.save_dtype == "auto" else getattr(torch, recipe.save_dtype)
    tokens = {n: t.to(dtype) for n, t in trainable.encoder.special.tensors().items()}
    config = dataclasses.replace(
        base.config,
        k=recipe.k,
        pooling=recipe.pooling,
        layers=recipe.layers,
        scope=recipe.scope,
        tokens=(),
        prompts=recipe.prompts,
        max_length=recipe.max_length,
        adapter=trainable.encoder.adapter,
        base_model=base.config.base_model or Path(base.name).name,
    )
    # Weights that an adapter of the scope lora was merged into are nobody else's base.
    merged = base.base is not None and base.config.scope == "lora"
    if recipe.scope != "full" and not full and not merged:
        lora = trainable.lora
        own = {"save_lora": lora.save_pretrained, "dtype": str(dtype)[6:]} if lora else {}
        return save_adapter(out, base, config, tokens, **own)
    save_weights = partial(trainable.save_weights, dtype=dtype)
    return save_checkpoint(
        out, base.path, config, tokens, None if recipe.scope == "special" else save_weights
    )


def _mean_state(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of some states' weights, computed in float32."""
    states = [load_file(folder / "model.safetensors") for folder in checkpoints]
    if len(states) == 1:
        return states[0]
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(tensor.dtype)
        for name, tensor in states[0].items()
    }


# -- settings -----------------------------------------------------------------------------------


def _training_arguments(recipe: Recipe, run_folder: Path) -> TrainingArguments:
    """Trainer's settings: ours, overridden by the recipe's `trainer`."""
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
        "output_dir": str(run_folder),
        "max_steps": steps,
        "learning_rate": recipe.schedule.learning_rate,
        "seed": recipe.seed,
        "logging_steps": max(1, steps // 100),
        "save_steps": max(1, steps // 5),
        "save_total_limit": _least_states(recipe),
        "report_to": "none",
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        # In a step with one of the losses, weights that only the other uses have no gradients.
        "ddp_find_unused_parameters": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        # A CPU that trains has no core to spare for preparing batches.
        "dataloader_num_workers": 0 if on_cpu else 2,
        **recipe.trainer,
    }
    if settings.get("bf16") and not trains_in_bfloat16(recipe):
        settings["bf16"] = False
    try:
        arguments = TrainingArguments(**settings)
    except (TypeError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"the recipe's trainer settings cannot be used: {reason}") from None
    least = _least_states(recipe)
    if arguments.save_total_limit is not None and arguments.save_total_limit < least:
        raise InputError(
            f"trainer.save_total_limit must be at least {least}: the last whole state has to stay "
            "while the next is written, and those that schedule.average takes the mean of"
        )
    # One process uses one device; several devices need several processes (torchrun).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    batch = recipe.schedule.batch
    arguments.per_device_train_batch_size = max(1, batch // arguments.world_size)
    return arguments


def _least_states(recipe: Recipe) -> int:
    """How many states must stay: those that are averaged, and one that is written meanwhile or was
    saved out of turn by an interruption."""
    return recipe.schedule.average + 1


def _limit_length(recipe: Recipe, name: str, model_limit: int) -> Recipe:
    """Lower a recipe's max_length to what the model reads."""
    if recipe.max_length <= model_limit:
        return recipe
    warnings.warn(
        f"{name} reads texts of {model_limit} tokens: max_length {recipe.max_length} counts as "
        f"{model_limit}",
        stacklevel=3,
    )
    return dataclasses.replace(recipe, max_length=model_limit)


def _limit_epochs(recipe: Recipe, corpora: Sequence[Corpus]) -> Recipe:
    """Fewer steps, if a row would be contrasted more often than the recipe allows."""
    schedule = recipe.schedule
    if schedule.epochs is None:
        return recipe
    rows = sum(len(c.rows) for c in corpora if c.source.kind in ("pairs", "text", "documents"))
    most = max(1, int(schedule.epochs * rows / (schedule.contrastive_batch or schedule.batch)))
    return recipe if most >= schedule.steps else recipe.scaled(most)


# -- the run's state -----------------------------------------------------------------------------


def _build_record(recipe: Recipe, base: Checkpoint, corpora: Sequence[Corpus]) -> dict[str, Any]:
    """What the outcome of a run depends on, and so not the number of processes."""
    return {
        "recipe": recipe.state(),
        "recipe_hash": recipe.hash(),
        "base": base.fingerprint(),
        "data": {
            c.name: {"hash": c.hash(), "rows": len(c.rows), "cut": c.num_truncated} for c in corpora
        },
    }


def _write_or_check_record(run_folder: Path, record: Mapping[str, Any], resume: bool) -> None:
    """Write a new run's record, or compare with that of the run that is to be resumed."""
    file = run_folder / "run.json"
    if not resume:
        if latest_checkpoint(run_folder):
            raise InputError(
                f"{run_folder} holds the state of a run: go on with --resume, or remove it"
            )
        run_folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return
    if not file.exists():
        raise InputError(
            f"there is nothing to resume: {run_folder} holds no run; leave --resume out"
        )
    before = upgrade_record(json.loads(file.read_text(encoding="utf-8")), str(file))
    difference = next(_find_differences(before, dict(record)), None)
    if difference:
        name, new, old = difference
        raise InputError(
            f"{run_folder} was begun with another {name} ({old!r}, now {new!r}): resume with the "
            "same settings, or begin anew with another --out"
        )


def upgrade_record(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A run's record with today's keys: renamed ones, and the defaults of those it lacks."""
    recipe = from_state(upgrade_keys(record["recipe"], where, warn=False), where)
    return {**record, "recipe": recipe.state(), "recipe_hash": recipe.hash()}


def _find_differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, new value, old value) of every difference."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            dotted = f"{place}.{key}" if place else key
            yield from _find_differences(before.get(key), now.get(key), dotted)
    elif before != now:
        yield place, now, before


def _measure_cost(trainer: GemTrainer) -> Cost:
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
        trained_parameters=sum(t.numel() for t in trainable_state_dict(trainer.model).values()),
        device=device,
    )
