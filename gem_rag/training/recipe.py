"""Recipes: what to train on, with which objectives, for how long; YAML to checked dataclasses.

Every number of a run stands in its recipe, so that a recipe and its data give the same model.

Knows nothing about torch, files of text or models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.core.config import MAX_K, Pooling, Scope, check_prompts
from gem_rag.core.truncation import Truncation
from gem_rag.errors import InputError

RECIPES = Path(__file__).parent / "recipes"
Kind = Literal["text", "pairs", "summary", "prompt"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Loader(yaml.SafeLoader):
    """YAML with numbers like 1e-4, which YAML 1.1 reads as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


# The columns that each kind of source has, and those it may have.
COLUMNS: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text",), ("vector",)),
    "pairs": (("query", "document"), ("negatives", "query_vector", "document_vector")),
    "summary": (("text", "summary"), ()),
    "prompt": (("prompt", "answer"), ()),
}
# Fields of transformers' TrainingArguments that the recipe has a place of its own for.
_OWNED = {
    "output_dir": "--out",
    "max_steps": "schedule.steps",
    "num_train_epochs": "schedule.steps",
    "per_device_train_batch_size": "schedule.batch (over all processes)",
    "gradient_accumulation_steps": "memory.gradient_caching, which bounds memory for any batch",
    "learning_rate": "schedule.rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "schedule.warmup",
    "seed": "seed",
}


class _Part:
    """What all parts of a recipe share: unknown keys are errors."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Source(_Part):
    """One data set.

    path: a JSONL or Parquet file, a folder of documents, or a name on the hub; `--data` gives it.
    kind: "text" (next-token rows; contrast by token dropout), "pairs" (contrast, with the
        batch's other documents and `negatives` hard ones per row as negatives), "summary" (text,
        special tokens, summary) or "prompt" (prompt, special tokens, answer).
    columns: the file's names of the columns that the kind needs, where they differ.
    negatives: how many hard negatives of each row are used.
    weight: how often batches come from here, beside the other sources' weights.
    overlong: what happens to texts beyond the maximal length; "windows" cuts texts in pieces.
    subset, split: of a data set on the hub.
    """

    path: str | None = None
    kind: Kind = "text"
    columns: dict[str, str] = field(default_factory=dict)
    negatives: Count = 0
    weight: Rate = 1.0
    overlong: Truncation = "truncate"
    subset: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        needed, possible = COLUMNS[self.kind]
        for name in self.columns:
            if name not in needed + possible:
                raise InputError(f"data of kind {self.kind} has no column {name!r}"
                                 f"{did_you_mean(name, needed + possible)}")  # fmt: skip
        if self.negatives and self.kind != "pairs":
            raise InputError(f"only data of kind pairs has negatives, not {self.kind}")
        if self.overlong == "windows" and self.kind != "text":
            raise InputError(f"overlong: windows is for data of kind text, not {self.kind}")


@dataclass(frozen=True)
class NextToken(_Part):
    """Mixed next-token prediction (paper section 4).

    raw: share of rows that stay raw text (the paper's p).
    split: of the others, how many are split at random; the rest are reconstructed.
    distill: weight of the KL divergence from the frozen base's predictions on raw rows. It also
        counts while the contrastive loss alone trains, which is when generation drifts.
    """

    raw: Share = 0.8
    split: Share = 0.5
    distill: Weight = 0.0


@dataclass(frozen=True)
class Contrastive(_Part):
    """InfoNCE (paper section 4).

    drop: share of a text's tokens left out in its positive, for data of kind text.
    dims: Matryoshka dimensions (arXiv 2205.13147): the loss is the mean over vectors cut to
        these and the whole ones.
    teacher: a sentence-transformers model whose similarities within a batch are learned;
        or "columns" to read its vectors from the data.
    teacher_weight: of that loss, beside InfoNCE's 1.
    """

    drop: Share = 0.1
    dims: tuple[Positive, ...] = ()
    teacher: str | None = None
    teacher_weight: Weight = 1.0


@dataclass(frozen=True)
class Adapter(_Part):
    """Low-rank adapters, for the scopes lora and special.

    rank, alpha: alpha defaults to twice the rank.
    targets: last names of the linear layers that get one ("q_proj", ...); default all below the
        head. In the scope special, routers of mixture-of-experts models take flattened tokens and
        must be left out.
    dropout: in the scope lora.
    """

    rank: Positive = 16
    alpha: Rate | None = None
    targets: tuple[str, ...] = ()
    dropout: Share = 0.0

    @property
    def strength(self) -> float:
        """alpha, or its default."""
        return self.alpha or 2.0 * self.rank


@dataclass(frozen=True)
class Schedule(_Part):
    """Steps and rates. All counts of steps shrink together with `Recipe.scaled`.

    batch: rows in a step, over all processes.
    contrastive_batch: pairs in a contrastive step; default `batch`.
    rate, contrastive_rate: learning rates of the two phases; in between they mix as the losses do.
    adapt: steps at the beginning in which every row is raw (plain training on the domain's text).
    contrastive_from: step at which the contrastive loss sets in (the paper's alpha leaves 0).
    ramp: steps until it has replaced the next-token loss (alpha is 1); 0 is at once.
    warmup: steps of linear warm-up of the rate; it then falls by a cosine, to `floor` of itself.
    """

    steps: Positive = 1000
    batch: Positive = 32
    contrastive_batch: Positive | None = None
    rate: Rate = 1e-4
    contrastive_rate: Rate | None = None
    adapt: Count = 0
    contrastive_from: Count = 100
    ramp: Count = 0
    warmup: Count = 0
    floor: Share = 0.0


@dataclass(frozen=True)
class Memory(_Part):
    """How a batch is cut up to fit.

    tokens: most places in one forward pass of one process.
    padding: largest share of them that may be padding; rows of like length go together. With many
        processes it holds for the longest of each process's rows.
    gradient_caching: keep no activations but one pass's, and compute each pass twice. The batch
        is then bound by time, not by memory (arXiv 2101.06983).
    """

    tokens: Positive = 16384
    padding: Share = 0.1
    gradient_caching: bool = False


@dataclass(frozen=True)
class Evaluation(_Part):
    """What the report measures on.

    held_out: share of each source's rows kept out of training, at most `at_most`.
    data: sources to measure on instead; nothing is then held out of the training data.
    """

    held_out: Share = 0.05
    at_most: Count = 500
    data: dict[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe(_Part):
    """A whole training run; see the parts.

    scope: which weights move: "full", "lora" or "special".
    prompts: put before queries and documents of pairs, and kept in the checkpoint.
    max_length: most tokens of a text; query_length: of a query, default the same.
    special_tokens: "new" starts them anew, "continue" goes on from those the model has.
    save_dtype: of the saved weights; "auto" is the base model's own.
    trainer: further fields of transformers' TrainingArguments (bf16, save_steps, fsdp, ...).
    """

    data: dict[str, Source] = field(default_factory=dict)
    scope: Scope = "special"
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 1
    pooling: Pooling = "mean"
    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    max_length: Annotated[int, Field(ge=2)] = 512
    query_length: Positive | None = None
    special_tokens: Literal["new", "continue"] = "new"
    seed: Count = 0
    next_token: NextToken | None = None
    contrastive: Contrastive | None = None
    adapter: Adapter = Adapter()
    schedule: Schedule = Schedule()
    memory: Memory = Memory()
    evaluation: Evaluation = Evaluation()
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.next_token is None and self.contrastive is None:
            raise InputError("a recipe needs next_token, contrastive or both: nothing is trained")
        check_prompts(self.prompts)
        plan = self.schedule
        if self.next_token and self.contrastive and plan.contrastive_from >= plan.steps:
            raise InputError(f"schedule.contrastive_from is {plan.contrastive_from}, and steps is "
                             f"{plan.steps}: the contrastive loss would never train")  # fmt: skip
        for name, place in _OWNED.items():
            if name in self.trainer:
                raise InputError(f"trainer.{name} cannot be set: use {place}")

    def state(self) -> dict[str, Any]:
        """All settings as JSON holds them."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self), default=str)))

    def hash(self) -> str:
        """16 hexadecimal digits that name every setting."""
        state = json.dumps(self.state(), sort_keys=True)
        return hashlib.sha256(state.encode()).hexdigest()[:16]

    def scaled(self, steps: int) -> Recipe:
        """The same run in other steps: warm-up, phases and saves keep their shares."""
        factor = steps / self.schedule.steps
        counts = {
            name: round(getattr(self.schedule, name) * factor)
            for name in ("adapt", "contrastive_from", "ramp", "warmup")
        }
        counts["contrastive_from"] = min(counts["contrastive_from"], steps - 1)
        schedule = dataclasses.replace(self.schedule, steps=steps, **counts)
        trainer = dict(self.trainer)
        if isinstance(trainer.get("save_steps"), int):  # a share of the steps stays one
            trainer["save_steps"] = max(1, round(trainer["save_steps"] * factor))
        return dataclasses.replace(self, schedule=schedule, trainer=trainer)

    def with_data(self, paths: list[str]) -> Recipe:
        """The recipe with its sources' paths, given as NAME=PATH, or PATH where there is one.

        Raises InputError for a name that the recipe does not have, and for sources left without
        a path.
        """
        data = dict(self.data)
        for given in paths:
            name, _, path = given.partition("=")
            if name not in data and len(data) == 1:
                name, path = next(iter(data)), given
            if not path or name not in data:
                raise InputError(
                    f"--data {given!r} names no source of the recipe{did_you_mean(name, data)}: give "
                    f"NAME=PATH with a NAME among {', '.join(data)}"
                )
            data[name] = dataclasses.replace(data[name], path=path)
        for name, source in self.evaluation.data.items():
            if source.path is None:
                raise InputError(f"evaluation.data.{name} has no path: give it one in the recipe")
        for name, source in data.items():
            if source.path is None:
                raise InputError(
                    f"the recipe's source {name!r} has no path: give --data {name}=PATH"
                )
        if not data:
            raise InputError("the recipe has no data: name at least one source under data")
        return dataclasses.replace(self, data=data)


def read_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by the name of a bundled one, or from a YAML file.

    changes: dotted keys with values that take the place of the file's ("schedule.rate": 1e-3).

    Raises InputError naming the key, and the nearest right one, if anything in it is wrong.
    """
    path = Path(name)
    if path.parent == Path() and not path.suffix:
        path = RECIPES / f"{name}.yaml"
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        if not path.exists():
            raise InputError(f"there is no recipe {str(name)!r}{did_you_mean(str(name), known)}: give a "
                             f"YAML file, or one of {', '.join(known)}")  # fmt: skip
    try:
        state = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(state, dict):
        raise InputError(f"recipe {path} must hold keys and values")
    for key, value in (changes or {}).items():
        _set(state, key, value)
    return from_state(state, f"recipe {path}")


def from_state(state: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values, checked; errors as in `read_recipe`."""
    try:
        return TypeAdapter(Recipe).validate_python(state)
    except ValidationError as error:
        raise InputError(f"{where}: {_sentence(error)}") from None


def parse_change(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as YAML reads it. Raises InputError without a `=`."""
    key, found, value = text.partition("=")
    if not found:
        raise InputError(f"--set {text!r} is not KEY=VALUE, like schedule.rate=1e-4")
    try:
        return key, yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text!r}: the value is not valid YAML: {error}") from None


def _set(state: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        if not isinstance(state.setdefault(name, {}), dict):
            raise InputError(f"{dotted!r} cannot be set: {name} holds no keys")
        state = state[name]
    state[last] = value


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, in words."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        *parents, key = first["loc"]
        return f"unknown key {place!r}{did_you_mean(str(key), _keys(parents))}"
    if first["type"] == "value_error":  # one of our own checks
        return f"{place + ': ' if place else ''}{first['ctx']['error']}"
    return f"{place} is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _keys(place: list[int | str]) -> list[str]:
    """Names of the keys that may stand at a place."""
    parts: dict[str, type] = {
        "next_token": NextToken, "contrastive": Contrastive, "adapter": Adapter,
        "schedule": Schedule, "memory": Memory, "evaluation": Evaluation,
    }  # fmt: skip
    cls: type = Recipe
    if "data" in place:
        cls = Source
    elif place:
        cls = parts.get(str(place[0]), Recipe)
    return [f.name for f in dataclasses.fields(cls)]
