"""Recipes: what to train on, with which objectives, for how long; YAML to validated dataclasses.

Every number of a run is in its recipe, so a recipe and its data always give the same model.
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

from gem_rag._utils.suggestions import check_known, did_you_mean
from gem_rag.core.config import MAX_K, Pooling, Scope, check_prompts
from gem_rag.core.truncation import Truncation
from gem_rag.errors import InputError
from gem_rag.pairs.settings import PairSettings
from gem_rag.training.renamed_keys import upgrade_changes, upgrade_keys

RECIPES = Path(__file__).parent / "recipes"
Kind = Literal["text", "pairs", "documents", "summary", "prompt"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _YamlLoader(yaml.SafeLoader):
    """YAML with numbers like 1e-4, which YAML 1.1 reads as text."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


# The columns that each kind of source must have, and those it may have.
COLUMNS: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text",), ("vector",)),
    "pairs": (
        ("query", "document"),
        ("context", "negatives", "source", "query_vector", "document_vector"),
    ),
    "documents": ((), ()),  # pairs are made of them first
    "summary": (("text", "summary"), ()),
    "prompt": (("prompt", "answer"), ()),
}
# Columns of a teacher's vectors, by the columns of the texts they belong to.
TEACHER_COLUMNS: dict[Kind, dict[str, str]] = {
    "text": {"text": "vector"},
    "pairs": {"query": "query_vector", "document": "document_vector"},
}
# Fields of transformers' TrainingArguments that have a key of the recipe.
_RECIPE_KEYS = {
    "output_dir": "--out",
    "max_steps": "schedule.steps",
    "num_train_epochs": "schedule.steps",
    "per_device_train_batch_size": "schedule.batch (over all processes)",
    "gradient_accumulation_steps": "memory.gradient_caching, which bounds memory for any batch",
    "learning_rate": "schedule.learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "schedule.warmup_steps",
    "seed": "seed",
}


class _Part:
    """Base of all parts of a recipe: unknown keys are errors."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Source(_Part):
    """One data set.

    Attributes:
        path: A JSONL or Parquet file, a folder of documents, or a data set's name on the hub;
            `--data` sets it.
        kind: "text" (next-token rows; contrast by token dropout), "pairs" (contrast; negatives are
            the batch's other documents and `negatives` hard ones for each row; a document is read
            after its `context`, and its special tokens see it alone), "documents" (a
            folder that pairs are made of first), "summary" (text, special tokens, summary) or
            "prompt" (prompt, special tokens, answer).
        columns: The file's names of the columns that the kind needs, where they differ.
        negatives: How many hard negatives of each row are used.
        pairs: How pairs are made of documents (`gem_rag.pairs.settings`).
        weight: How often batches come from this source, relative to the other sources.
        truncation: What happens to texts beyond the maximum length; "windows" splits them.
        subset: Of a data set on the hub.
        split: Of a data set on the hub.
    """

    path: str | None = None
    kind: Kind = "text"
    columns: dict[str, str] = field(default_factory=dict)
    negatives: Count = 0
    pairs: PairSettings | None = None
    weight: PositiveFloat = 1.0
    truncation: Truncation = "truncate"
    subset: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        required, optional = COLUMNS[self.kind]
        check_known(self.columns, required + optional, f"data of kind {self.kind} has no column")
        if self.negatives and self.kind not in ("pairs", "documents"):
            raise InputError(f"only data of kind pairs has negatives, not {self.kind}")
        if self.pairs is not None and self.kind != "documents":
            raise InputError(f"pairs are made of data of kind documents, not {self.kind}")
        if self.truncation == "windows" and self.kind != "text":
            raise InputError(f"truncation: windows is for data of kind text, not {self.kind}")


@dataclass(frozen=True)
class NextToken(_Part):
    """Mixed next-token prediction (paper section 4).

    Attributes:
        raw: Share of rows that stay raw text (the paper's p).
        split: Share of the others that are split at random; the rest are reconstructed.
        distill: Weight of the KL divergence from the frozen base's predictions on raw rows. It also
            applies while only the contrastive loss trains, which is when generation drifts.
    """

    raw: Share = 0.8
    split: Share = 0.5
    distill: Weight = 0.0


@dataclass(frozen=True)
class Temperature(_Part):
    """What cosines are divided by in the contrastive loss; it is learned.

    Attributes:
        initial: At the beginning.
        least: It never falls below this.
    """

    initial: PositiveFloat = 0.05
    least: PositiveFloat = 0.01

    def __post_init__(self) -> None:
        if not self.least <= self.initial <= 1:
            raise InputError(
                f"temperature.initial is {self.initial}: it must be from least ({self.least}) to 1"
            )


@dataclass(frozen=True)
class Contrastive(_Part):
    """InfoNCE (paper section 4), and what has been found to help it since.

    Attributes:
        drop: Share of a text's tokens that its positive lacks, for data of kind text.
        dims: Matryoshka dimensions (arXiv 2205.13147): the loss is the mean over vectors shortened
            to these and the full ones.
        temperature: What cosines are divided by.
        both_ways: Whether a document must find its query too.
        false_negative_margin: A negative does not count if its cosine is above the positive's by
            more than this (Qwen3-Embedding, arXiv 2506.05176: 0.1); default all count.
        mask_same_source: Documents with the value of the positive's column "source" do not count
            as negatives.
        hardness: Negatives weigh exp(hardness * cosine) (arXiv 2010.04592); 0 is all alike.
        spread: Weight of the spread-out regularizer (GOR, arXiv 1708.06320).
        teacher: A sentence-transformers model; "columns" to read vectors from the data; or "base"
            for the model's own mean-pooled vectors, whitened.
        teacher_weight: Weight of learning the teacher's similarities within a batch, relative to
            InfoNCE's 1.
        align: Weight of aligning vectors with the teacher's through a linear projection, which is
            thrown away after training (LEAF, arXiv 2509.12539).
    """

    drop: Share = 0.1
    dims: tuple[Positive, ...] = ()
    temperature: Temperature = Temperature()
    both_ways: bool = False
    false_negative_margin: Weight | None = None
    mask_same_source: bool = False
    hardness: Weight = 0.0
    spread: Weight = 0.0
    teacher: str | None = None
    teacher_weight: Weight = 1.0
    align: Weight = 0.0

    def __post_init__(self) -> None:
        if self.align and self.teacher is None:
            raise InputError(
                "contrastive.align needs a teacher: a sentence-transformers model, columns, or base"
            )


@dataclass(frozen=True)
class Adapter(_Part):
    """Low-rank adapters, for the scopes lora and special.

    Attributes:
        rank: Inner dimension.
        alpha: Updates are scaled by alpha / rank; default twice the rank.
        targets: Last names of the linear layers that get one ("q_proj", ...); default all below the
            head. In the scope special, routers of mixture-of-experts models, which take flattened
            tokens, must be left out.
        dropout: In the scope lora.
    """

    rank: Positive = 16
    alpha: PositiveFloat | None = None
    targets: tuple[str, ...] = ()
    dropout: Share = 0.0

    @property
    def effective_alpha(self) -> float:
        """alpha, or its default."""
        return self.alpha or 2.0 * self.rank


@dataclass(frozen=True)
class Schedule(_Part):
    """Steps, batch sizes and learning rates; `Recipe.scaled` shrinks all counts of steps together.

    Attributes:
        steps: Optimizer steps.
        epochs: The most times that a row is contrasted: steps are fewer where data are few; default
            any number of times.
        batch: Rows in a step, over all processes.
        contrastive_batch: Pairs in a contrastive step; default `batch`.
        learning_rate: Of the next-token phase.
        contrastive_learning_rate: Of the contrastive phase, default the same; in between the two
            mix as the losses do.
        adapt: Steps at the beginning in which every row is raw (plain training on the domain's
            text).
        contrastive_from: Step at which the contrastive loss sets in (the paper's alpha leaves 0).
        ramp: Steps until it has replaced the next-token loss (alpha is 1); 0 is at once.
        align: Contrastive steps at the beginning that only align vectors with the teacher's.
        average: The trained weights are the mean of so many of the last saved states.
        warmup_steps: Steps of linear warm-up of the learning rate, which then decays by a cosine.
        min_lr_ratio: The share of the learning rate that it decays to.
    """

    steps: Positive = 1000
    epochs: PositiveFloat | None = None
    batch: Positive = 32
    contrastive_batch: Positive | None = None
    learning_rate: PositiveFloat = 1e-4
    contrastive_learning_rate: PositiveFloat | None = None
    adapt: Count = 0
    contrastive_from: Count = 100
    ramp: Count = 0
    align: Count = 0
    average: Positive = 1
    warmup_steps: Count = 0
    min_lr_ratio: Share = 0.0


@dataclass(frozen=True)
class Memory(_Part):
    """How a batch is split to fit into memory.

    Attributes:
        tokens: The most positions in one forward pass of one process.
        padding: The largest share of them that may be padding; rows of similar length go together.
            With many processes it applies to the longest of each process's rows.
        gradient_caching: Keep only one pass's activations, and compute each pass twice. The batch
            is then limited by time, not by memory (arXiv 2101.06983).
    """

    tokens: Positive = 16384
    padding: Share = 0.1
    gradient_caching: bool = False


@dataclass(frozen=True)
class Evaluation(_Part):
    """What the report measures on.

    Attributes:
        held_out: Share of each source's rows that is kept out of training.
        max_rows: The most rows to measure on.
        data: Sources to measure on instead; nothing is then held out of the training data.
    """

    held_out: Share = 0.05
    max_rows: Count = 500
    data: dict[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe(_Part):
    """A whole training run; see the parts.

    Attributes:
        data: Sources by name.
        scope: Which weights move: "full", "lora" or "special".
        k: Special tokens in an embedding.
        pooling: How their outputs become one vector.
        layers: Embeddings are read after so many of the model's layers, which makes them cheaper;
            default all. Next-token losses and generation use all layers.
        prompts: Put before queries and documents of pairs, and kept in the checkpoint.
        answer_head: Documents are read after what the model's answers begin with, instead of a
            prompt of their own: then the keys and values of a passage serve its embedding and an
            answer. `max_length` counts it.
        max_length: The most tokens of a text.
        query_length: The most tokens of a query; default `max_length`.
        special_tokens: "new" initializes them, "continue" starts from those the model has, "auto"
            continues if there are some of this scope and k, and takes over their adapters' size.
        seed: Of everything that is drawn.
        save_dtype: Of the saved weights; "auto" is the base model's own.
        trainer: Further fields of transformers' TrainingArguments (bf16, save_steps, fsdp, ...).
    """

    data: dict[str, Source] = field(default_factory=dict)
    scope: Scope = "special"
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 1
    pooling: Pooling = "mean"
    layers: Positive | None = None
    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    answer_head: bool = False
    max_length: Annotated[int, Field(ge=2)] = 512
    query_length: Positive | None = None
    special_tokens: Literal["new", "continue", "auto"] = "new"
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
        if self.answer_head and self.prompts["document"]:
            raise InputError(
                "answer_head is the document prompt: leave prompts.document empty, or answer_head "
                "out"
            )
        start, steps = self.schedule.contrastive_from, self.schedule.steps
        if self.next_token and self.contrastive and start >= steps:
            raise InputError(
                f"schedule.contrastive_from is {start}, and steps is {steps}: the contrastive loss "
                "would never train"
            )
        if self.schedule.align and not (self.contrastive and self.contrastive.align):
            raise InputError("schedule.align needs contrastive.align: give it a weight")
        for name, key in _RECIPE_KEYS.items():
            if name in self.trainer:
                raise InputError(f"trainer.{name} cannot be set: use {key}")

    def state(self) -> dict[str, Any]:
        """All settings, as plain values for JSON."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self), default=str)))

    def hash(self) -> str:
        """16 hexadecimal digits that identify every setting."""
        return hash_state(self.state())

    def scaled(self, steps: int) -> Recipe:
        """The same run in another number of steps: warm-up, phases and saves keep their shares."""
        factor = steps / self.schedule.steps
        counts = {
            name: round(getattr(self.schedule, name) * factor)
            for name in ("adapt", "contrastive_from", "ramp", "align", "warmup_steps")
        }
        counts["contrastive_from"] = min(counts["contrastive_from"], steps - 1)
        schedule = dataclasses.replace(self.schedule, steps=steps, **counts)
        trainer = dict(self.trainer)
        if isinstance(trainer.get("save_steps"), int):
            trainer["save_steps"] = max(1, round(trainer["save_steps"] * factor))
        return dataclasses.replace(self, schedule=schedule, trainer=trainer)

    def with_data(self, paths: list[str]) -> Recipe:
        """Set the paths of the sources.

        Args:
            paths: NAME=PATH each, or PATH if the recipe has one source.

        Returns:
            The recipe with these paths.

        Raises:
            InputError: The recipe does not have a name, or a source is left without a path.
        """
        data = dict(self.data)
        for given in paths:
            name, _, path = given.partition("=")
            if name not in data and len(data) == 1:
                name, path = next(iter(data)), given
            if not path or name not in data:
                raise InputError(
                    f"--data {given!r} names no source of the recipe{did_you_mean(name, data)}: "
                    f"give NAME=PATH with a NAME among {', '.join(data)}"
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
    """Read a bundled recipe or a YAML file.

    Args:
        name: A bundled recipe's name, or a YAML file.
        changes: Values that replace the file's, by dotted key ("schedule.learning_rate": 1e-3).

    Returns:
        The validated recipe.

    Raises:
        InputError: Something is wrong with it; the message names the key, and the closest valid
            one.
    """
    path = Path(name)
    if path.parent == Path() and not path.suffix:
        path = RECIPES / f"{name}.yaml"
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        if not path.exists():  # which also says what it may be called
            check_known(
                [str(name)],
                known,
                "there is no recipe",
                f": give a YAML file, or one of {', '.join(known)}",
            )
    try:
        state = yaml.load(path.read_text(encoding="utf-8"), _YamlLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(state, dict):
        raise InputError(f"recipe {path} must hold keys and values")
    state = upgrade_keys(state, f"recipe {path}")
    for key, value in upgrade_changes(changes or {}).items():
        _set_dotted(state, key, value)
    return from_state(state, f"recipe {path}")


def from_state(state: Mapping[str, Any], where: str) -> Recipe:
    """Validate a recipe's plain values; raises what `read_recipe` raises.

    Args:
        state: Values by key, as in a YAML file.
        where: What holds them, for errors.
    """
    try:
        return TypeAdapter(Recipe).validate_python(upgrade_keys(state, where))
    except ValidationError as error:
        raise InputError(f"{where}: {_describe(error)}") from None


def hash_state(state: Mapping[str, Any]) -> str:
    """Like `Recipe.hash`, of plain values."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def parse_change(text: str) -> tuple[str, Any]:
    """Split KEY=VALUE, and read the value as YAML; raises InputError if it is not like that."""
    key, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"--set {text!r} is not KEY=VALUE, like schedule.learning_rate=1e-4")
    try:
        return key, yaml.load(value, _YamlLoader)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text!r}: the value is not valid YAML: {error}") from None


def _set_dotted(state: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        if not isinstance(state.setdefault(name, {}), dict):
            raise InputError(f"{dotted!r} cannot be set: {name} holds no keys")
        state = state[name]
    state[last] = value


def _describe(error: ValidationError) -> str:
    """The first error, in one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        *parents, key = first["loc"]
        return f"unknown key {place!r}{did_you_mean(str(key), _known_keys(parents))}"
    if first["type"] == "value_error":  # raised by a check of ours
        return f"{place + ': ' if place else ''}{first['ctx']['error']}"
    return f"{place} is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _known_keys(place: list[int | str]) -> list[str]:
    """The keys that are valid at a place."""
    parts: dict[str, type] = {
        "next_token": NextToken,
        "contrastive": Contrastive,
        "temperature": Temperature,
        "adapter": Adapter,
        "schedule": Schedule,
        "memory": Memory,
        "evaluation": Evaluation,
    }
    cls: type = Recipe
    if "data" in place:  # data.NAME.key, or data.NAME.pairs.key
        cls = PairSettings if len(place) - place.index("data") > 2 else Source
    elif place:
        cls = parts.get(str(place[-1]), Recipe)
    return [f.name for f in dataclasses.fields(cls)]
