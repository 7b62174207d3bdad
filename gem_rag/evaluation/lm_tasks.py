"""lm_eval's tasks on language models: base and trained, on the same samples.

lm_eval reads the data, prompts and scores; every task's result is saved in a file of its own, so
that an interrupted run resumes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.api.task
import torch
from lm_eval.api.metrics import mean_stderr
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory

from gem_rag._utils.files import write_atomically
from gem_rag._utils.progress import progress_bar
from gem_rag._utils.suggestions import did_you_mean
from gem_rag.errors import GemError, InputError
from gem_rag.evaluation.data_files import first_line, not_at_hand, quiet, snapshot
from gem_rag.evaluation.scores import (
    LOWER_IS_BETTER,
    Missing,
    Record,
    Score,
    this_machine,
)
from gem_rag.loading import load
from gem_rag.model import Gem


@dataclass(frozen=True)
class Setting:
    """lm_eval's tasks, and how many examples stand before each question."""

    tasks: tuple[str, ...]
    shots: int


# What the GEM paper measures (arXiv 2506.04344).
PAPER_LM = Setting(("mmlu",), 5)


@dataclass(frozen=True)
class _Result:
    """What one model did on one task.

    metrics: as lm_eval has them, by "metric,filter" and "metric_stderr,filter".
    items: values of single samples, by "metric,filter".
    cut: how many requests were longer than the model's context.
    """

    metrics: dict[str, Any]
    items: dict[str, list[float]]
    cut: int


@dataclass(frozen=True)
class _Tasks:
    """Tasks and groups of them by name, and the group that each belongs to, if it does."""

    single: dict[str, Any]
    groups: dict[str, Any]
    group_of: dict[str, str]


def run_lm(
    models: Mapping[str, Gem | str | Path],
    tasks: Sequence[str],
    folder: Path,
    *,
    shots: int | None = None,
    limit: int | None = None,
    include: Path | None = None,
    cache: Path | None = None,
    batch_size: int = 4,
    progress: bool = False,
) -> Record:
    """Scores of all models on all tasks, and how the others differ from the first.

    Every score of a task has the values of its samples; "acc difference" is a model's score minus
    that of the first, with its standard error over the same samples. What is finished below
    `folder`/lm_eval, and was digest in the same way, is not run again.

    models: by name, the base first; the record is the last one's. A Gem is used as it is loaded; a
        name or folder is loaded for its turn.
    tasks: names of lm_eval's tasks, groups and tags, or patterns like "mmlu_*".
    shots: examples before each question; default the task's own number.
    limit: most questions of a task; for trying out.
    include: folder with tasks of one's own, as lm_eval's YAML.
    cache: folder of data sets, as HF_HOME is; default the hub's own place.

    Raises InputError for an unknown task and for a model on the vLLM engine, whose weights lm_eval
    cannot run; GemError if no task's data can be had, or the model gives NaN.
    """
    _check(models, shots, limit)
    began = time.perf_counter()
    with _quiet():
        found, missing = _load_tasks(tasks, include, cache)
        if not found.single:
            raise GemError(f"no task could be measured; {missing[0].task}: {missing[0].reason}")
        digest = {name: _request_digest(task, shots, limit) for name, task in found.single.items()}
        results: dict[str, dict[str, _Result]] = {}
        with progress_bar("lm_eval", len(models) * len(digest), progress) as advance:
            for name, model in models.items():
                results[name] = {}
                with _open_model(model) as gem, _language_model(gem, batch_size) as own:
                    for task, question in digest.items():
                        advance(0, f"{name}: {task}")
                        file = folder / "lm_eval" / _file_name(name) / f"{_file_name(task)}.json"
                        results[name][task] = _result(
                            own, gem.fingerprint, found.single[task], question, file, limit
                        )
                        advance(1)
    unfit = [task for task in found.single if not _metrics(found.single[task])]
    missing += [Missing("generation", task, "it has no metric of which more is better",
                        found.group_of.get(task, "")) for task in unfit]  # fmt: skip
    cut = sum(result.cut for by_task in results.values() for result in by_task.values())
    if cut:
        warnings.warn(f"{cut} requests were longer than the model's context and lost their "
                      "beginning: ask with fewer examples (shots)", stacklevel=2)  # fmt: skip
    settings = {"version": lm_eval.__version__, "tasks": list(tasks), "shots": shots,
                "limit": limit, "cut requests": cut}  # fmt: skip
    return Record(
        system=list(models)[-1],
        scores=tuple(_scores(results, found)),
        missing=tuple(missing),
        settings={"lm_eval": settings},
        timings={"lm_eval": time.perf_counter() - began},
        machine=this_machine(),
    )


def _check(models: Mapping[str, Gem | str | Path], shots: int | None, limit: int | None) -> None:
    if not models:
        raise InputError("there is no model to measure: name one")
    for name, model in models.items():
        if isinstance(model, Gem) and model.engine_name != "transformers":
            raise InputError(
                f"{name} is on the vLLM engine, which keeps its weights to itself: load it with "
                "engine='transformers' for lm_eval"
            )
    if shots is not None and shots < 0:
        raise InputError(f"shots must be 0 or more, not {shots}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")


# -- tasks ---------------------------------------------------------------------------------------


class _Factory(TaskFactory):
    """Makes lm_eval's tasks; reads data sets from the cache folder's files where they are there.

    absent: repository and revision of the last data set that was not.
    """

    def __init__(self, cache: Path | None) -> None:
        super().__init__()
        self._cache = cache
        self.absent: tuple[str, str | None] | None = None

    def _load_full_config(self, entry: Any, overrides: Any = None) -> dict[str, Any]:
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        repo, options = config.get("dataset_path"), config.get("dataset_kwargs") or {}
        self.absent = None
        if isinstance(repo, str) and "data_files" not in options:
            revision = options.get("revision")
            place = snapshot(repo, revision, self._cache, download=False)
            if place is not None:
                config["dataset_path"] = str(place)
            else:
                self.absent = (repo, revision)
        return config


def _load_tasks(
    names: Sequence[str], include: Path | None, cache: Path | None
) -> tuple[_Tasks, list[Missing]]:
    """lm_eval's tasks with their data.

    Raises InputError for an unknown name.
    """
    if include is not None and not include.is_dir():
        raise InputError(f"there is no folder {include}: give one that holds lm_eval's YAML files")
    manager = TaskManager(include_path=str(include), include_defaults=False) if include else None
    if manager is None or not all(manager.match_tasks([name]) for name in names):
        # It reads some ten thousand files, so only if there is a need.
        manager = TaskManager(include_path=str(include) if include else None)
    factory = manager._factory = _Factory(cache)
    found, missing = _Tasks({}, {}, {}), []
    for name in [match for given in names for match in _match_names(manager, given)]:
        try:
            loaded = manager.load([name])
        except Exception as error:  # whatever the readers of its data raise
            reason = f"its data cannot be read: {first_line(error)}"
            if factory.absent is not None and isinstance(error, OSError | ValueError):
                reason = not_at_hand(*factory.absent, cache)
            missing.append(Missing("generation", name, reason))
            continue
        found.single.update(loaded["tasks"])
        found.groups.update(loaded["groups"])
        for group, members in loaded["group_map"].items():
            found.group_of.update(dict.fromkeys(members, group))
    return found, missing


def _match_names(manager: TaskManager, name: str) -> list[str]:
    matches: list[str] = manager.match_tasks([name])
    if not matches:
        known = did_you_mean(name, manager.all_tasks)
        raise InputError(f"lm_eval has no task {name!r}{known}: 'lm-eval ls tasks' lists them")
    return matches


def _request_digest(task: Any, shots: int | None, limit: int | None) -> str:
    """64 hexadecimal digits that name everything a task asks and wants to hear.

    Sets the number of examples, as lm_eval's command does: a task that was made for none keeps
    none.
    """
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    task.build_all_requests(limit=limit)
    digest = hashlib.sha256(json.dumps(task.dump_config(), default=str).encode())
    for request in task.instances:
        digest.update(json.dumps([request.arguments, request.doc], default=str).encode())
    return digest.hexdigest()


def _metrics(task: Any) -> list[str]:
    """Those of which it is known whether more or less is better."""
    larger = task.higher_is_better()
    return [metric for metric, better in larger.items() if better or metric in LOWER_IS_BETTER]


# -- running -------------------------------------------------------------------------------------


class _Model(HFLM):
    """lm_eval's model around one that is loaded; without bars, and it tells what it cuts.

    cut: how many requests were longer than the context.
    """

    def __init__(self, model: Any, tokenizer: Any, context: int, batch_size: int) -> None:
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", max_length=context,
            batch_size=batch_size,
        )  # fmt: skip
        self.cut = 0

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        self.cut += sum(len(before) + len(after) > self.max_length + 1
                        for _, before, after in requests)  # fmt: skip
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(
            requests, disable_tqdm=True, **options
        )
        for (texts, *_), (likely, _) in zip(requests, found, strict=True):
            if math.isnan(likely):
                end = "".join(texts or ())[-60:]
                raise GemError(f"the model gives NaN for the text that ends {end!r}: its weights "
                               "or its dtype are not fit for it")  # fmt: skip
        return found


def _result(
    model: _Model, of: str, task: Any, digest: str, file: Path, limit: int | None
) -> _Result:
    """A task's, kept or new.

    of: fingerprint of the model.
    digest: what names its questions.
    """
    identity = {"model": of, "dtype": str(model.model.dtype), "digest": digest,
                "lm_eval": lm_eval.__version__}  # fmt: skip
    found = _read(file, identity)
    if found is None:
        found = _evaluate(model, task, limit)
        state = {"identity": identity, **asdict(found)}
        write_atomically(file, json.dumps(state, default=float))
    return found


@contextmanager
def _open_model(model: Gem | str | Path) -> Iterator[Gem]:
    """A model for its turn; one that is loaded already stays so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has not been GEM-trained")
        gem = load(model, "auto" if isinstance(model, Gem) else "transformers")
    with gem:
        yield gem


@contextmanager
def _language_model(gem: Gem, batch_size: int) -> Iterator[_Model]:
    """A Gem's language model for lm_eval, which may change the tokenizer it is given."""
    with gem.language_model() as model:
        yield _Model(model, copy.deepcopy(gem.hf_tokenizer), gem.context_length, batch_size)


def _evaluate(model: _Model, task: Any, limit: int | None) -> _Result:
    name, model.cut = task.task_name, 0
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)  # the same examples and draws for every model
    torch.manual_seed(DEFAULT_OTHER_SEED)
    try:
        # No bootstrap: it starts processes, and what has a mean has an error without it.
        found = lm_eval.evaluate(model, {"tasks": {name: task}, "groups": {}}, limit=limit,
                                 bootstrap_iters=0, log_samples=True)  # fmt: skip
    except GemError:
        raise
    except Exception as error:  # whatever a task's own code raises
        raise GemError(f"{name} failed in lm_eval: {first_line(error)}") from error
    items: dict[str, list[float]] = {}
    for sample in found["samples"][name]:
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float):
                items.setdefault(f"{metric},{sample['filter']}", []).append(float(sample[metric]))
    metrics = dict(found["results"][name])
    # A score may be more than a mean of its samples' values, which then say nothing of its error.
    items = {key: values for key, values in items.items() if _is_mean(metrics.get(key), values)}
    for key, values in items.items():
        if len(values) > 1:
            metrics[_stderr_key(key)] = mean_stderr(values)
    return _Result(metrics, items, model.cut)


def _is_mean(value: Any, items: Sequence[float]) -> bool:
    return isinstance(value, int | float) and bool(items) and math.isclose(
        value, sum(items) / len(items), abs_tol=1e-9
    )  # fmt: skip


def _stderr_key(key: str) -> str:
    """ "acc,none" to "acc_stderr,none"."""
    metric, filtered = key.split(",", 1)
    return f"{metric}_stderr,{filtered}"


def _read(file: Path, identity: dict[str, str]) -> _Result | None:
    """A kept result, if it is of the same model and the same questions."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return _Result(**state) if state.pop("identity") == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm_eval's notes, and its one bar that takes no argument."""
    bar = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = lambda rows, **_: rows
    try:
        with quiet("lm_eval"):
            yield
    finally:
        lm_eval.api.task.tqdm = bar


# -- scores --------------------------------------------------------------------------------------


def _scores(results: Mapping[str, Mapping[str, _Result]], tasks: _Tasks) -> Iterator[Score]:
    """Groups first, then single tasks; after each of their scores how it differs."""
    table = {model: _with_groups(by_task, tasks) for model, by_task in results.items()}
    base = next(iter(table))
    wanted = {metric for task in tasks.single.values() for metric in _metrics(task)}
    for task in [*tasks.groups, *tasks.single]:
        keys = [key for key in table[base].get(task, _Result({}, {}, 0)).metrics
                if key.split(",")[0] in wanted and "," in key]  # fmt: skip
        for key in keys:
            for model, by_task in table.items():
                group = tasks.group_of.get(task, "")
                yield _score(by_task[task], key, task, model, group)
                if model != base:
                    yield _difference(table[base][task], by_task[task], key, task, model, group)


def _with_groups(by_task: Mapping[str, _Result], tasks: _Tasks) -> dict[str, _Result]:
    """A model's results with those of groups, as lm_eval puts them together."""
    metrics = {name: result.metrics for name, result in by_task.items()}
    found = dict(by_task)
    for name, group in tasks.groups.items():
        own = group.aggregate(metrics)
        parts = [by_task[task.task_name] for task in group.get_all_tasks()]
        joined = {
            key: [value for part in parts for value in part.items.get(key, ())] for key in own
        }
        items = {key: values for key, values in joined.items() if _is_mean(own[key], values)}
        found[name] = _Result(own, items, 0)
    return found


def _score(result: _Result, key: str, task: str, model: str, group: str) -> Score:
    error = result.metrics.get(_stderr_key(key))
    return Score(
        "generation", task, _metric_name(key), model, float(result.metrics[key]),
        tuple(result.items.get(key, ())), error=error if isinstance(error, float) else None,
        group=group,
    )  # fmt: skip


def _difference(
    base: _Result, other: _Result, key: str, task: str, model: str, group: str
) -> Score:
    """Second minus first; paired by sample, so what makes a question hard for both drops out."""
    pairs = zip(base.items.get(key, ()), other.items.get(key, ()), strict=True)
    items = tuple(after - before for before, after in pairs)
    return Score(
        "generation", task, f"{_metric_name(key)} difference", model,
        float(other.metrics[key] - base.metrics[key]), items,
        error=float(mean_stderr(items)) if len(items) > 1 else None, group=group,
    )  # fmt: skip


def _metric_name(key: str) -> str:
    """ "acc,none" to "acc"; a filter that does something is named."""
    metric, filtered = key.split(",", 1)
    return metric if filtered == "none" else f"{metric} ({filtered})"
