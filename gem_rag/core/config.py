"""`gem_config.json`: what makes an ordinary language-model folder a GEM checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, get_args

from gem_rag._utils.suggestions import check_choice, check_known
from gem_rag.errors import InputError

CONFIG_NAME = "gem_config.json"
FORMAT_VERSION = 1
MAX_K = 16
MAX_RANK = 4096

Pooling = Literal["mean", "concat"]
Scope = Literal["full", "lora", "special"]
AnswerStyle = Literal["free", "checked", "quote", "quotes", "sentences"]
T = TypeVar("T")

# Fields that do not change vectors.
_NOT_IN_FINGERPRINT = (
    "tokens",
    "answer_prompt",
    "answer_style",
    "answer_margin",
    "answer_min_score",
    "base_model",
    "scope",
)


@dataclass(frozen=True)
class AdapterConfig:
    """Low-rank adapters that act on special-token rows only.

    Attributes:
        rank: Inner dimension of every adapter.
        alpha: Adapters are scaled by alpha / rank, as in LoRA (arXiv 2106.09685).
        targets: Names of the adapted linear modules, relative to the base model.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if not is_whole(self.rank) or not 1 <= self.rank <= MAX_RANK:
            raise InputError(
                f"adapter rank must be a whole number from 1 to {MAX_RANK}, not {self.rank!r}"
            )
        if not is_number(self.alpha) or not 0 < self.alpha < math.inf:
            raise InputError(f"adapter alpha must be a number above 0, not {self.alpha!r}")
        object.__setattr__(self, "targets", _texts("adapter targets", self.targets))


@dataclass(frozen=True)
class GemConfig:
    """Everything gem-rag must know about a checkpoint that `config.json` does not say.

    Attributes:
        k: Special tokens in an embedding, 1 to 16 (paper section 3).
        pooling: How the k outputs become one vector.
        scope: Which weights GEM training moved; None means the model is not GEM-trained.
        tokens: Names of the special tokens, where a tokenizer must have them (export, vLLM).
        prompts: Text put before what is embedded, by use: "query" and "document".
        answer_prompt: The model's own form of a grounded question, with {passages} and {question};
            None leaves it to the chat template.
        answer_style: "free" writes an answer; "checked" leaves out its sentences that no passage
            supports; "quote" gives words of one passage, verbatim, or says that no passage answers:
            for models too small to write, or where every word must be checkable; "quotes" gives
            words of up to three; "sentences" gives the passages' sentences that are nearest to the
            question.
        answer_margin: Passages whose cosine with the question is lower than the best one's by more
            than this are not read for an answer; None reads all. For models that retrieve better
            than they read.
        answer_min_score: Passages whose cosine with the question is lower than this are not read
            for an answer; None reads all. Where none is left, the answer is a refusal.
        max_length: The most text tokens in one embedding pass; None means the model's limit.
        layers: Embeddings are read after so many of the model's layers (and its final norm), None
            after all; generation always uses all.
        adapter: The adapters on special-token rows, if there are any.
        base_model: Name of the model that was GEM-trained, for people to read.
        format_version: Version of the file's format.

    Raises:
        InputError: A value cannot be used.
    """

    k: int = 1
    pooling: Pooling = "mean"
    scope: Scope | None = None
    tokens: tuple[str, ...] = ()
    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    answer_prompt: str | None = None
    answer_style: AnswerStyle = "free"
    answer_margin: float | None = None
    answer_min_score: float | None = None
    max_length: int | None = None
    layers: int | None = None
    adapter: AdapterConfig | None = None
    base_model: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not is_whole(self.k) or not 1 <= self.k <= MAX_K:
            raise InputError(
                f"k must be a whole number from 1 to {MAX_K}, not {self.k!r}: an embedding is read "
                "from k special tokens"
            )
        check_choice("pooling", self.pooling, get_args(Pooling))
        check_choice("answer_style", self.answer_style, get_args(AnswerStyle))
        check_margin("answer_margin", self.answer_margin)
        least = self.answer_min_score
        if least is not None and not (is_number(least) and -1 <= least <= 1):
            raise InputError(f"answer_min_score must be a cosine, from -1 to 1, not {least!r}")
        if self.scope is not None:
            check_choice("scope", self.scope, get_args(Scope))
        if self.format_version != FORMAT_VERSION:
            raise InputError(
                f"{CONFIG_NAME} has format version {self.format_version}, this gem-rag reads "
                f"{FORMAT_VERSION}: install the gem-rag that wrote it"
            )
        tokens = _texts("tokens", self.tokens) or tuple(
            f"<|gem_{i}|>" for i in range(1, self.k + 1)
        )
        object.__setattr__(self, "tokens", tokens)
        if len(set(tokens)) != self.k:
            raise InputError(f"k is {self.k}, so tokens must be {self.k} different names: {tokens}")
        check_prompts(self.prompts)
        for name in ("answer_prompt", "base_model"):
            if not isinstance(getattr(self, name), str | None):
                raise InputError(f"{name} must be a text or None, not {getattr(self, name)!r}")
        if self.max_length is not None and (not is_whole(self.max_length) or self.max_length < 1):
            raise InputError(
                f"max_length must be a whole number, at least 1, or None, not {self.max_length!r}"
            )
        # How many there are, the model says (`passes.count_layers`).
        if self.layers is not None and not is_whole(self.layers):
            raise InputError(f"layers must be a whole number, or None for all, not {self.layers!r}")

    def dim(self, hidden: int) -> int:
        """Length of an embedding, for a model whose outputs have length `hidden`."""
        return hidden * self.k if self.pooling == "concat" else hidden

    def effective_max_length(self, limit: int) -> int:
        """The most tokens of a text, where the model and the engine allow `limit`."""
        return min(self.max_length or limit, limit)

    def fingerprint_state(self) -> dict[str, Any]:
        """The fields that change vectors."""
        state = dataclasses.asdict(self)
        if self.layers is None:  # as in the files of before there was the field
            del state["layers"]
        return {name: value for name, value in state.items() if name not in _NOT_IN_FINGERPRINT}

    def save(self, folder: Path) -> None:
        """Write `gem_config.json`."""
        state = dataclasses.asdict(self)
        if self.layers is None:  # which versions before 0.2 do not know
            del state["layers"]
        text = json.dumps(state, indent=2, ensure_ascii=False)
        (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> GemConfig | None:
        """Read a folder's `gem_config.json`.

        Returns:
            The configuration, or None for a plain language model, which has none.

        Raises:
            InputError: The file is there and cannot be used.
        """
        path = folder / CONFIG_NAME
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON ({error}): restore the file") from None
        if not isinstance(state, dict):
            raise InputError(f"{path} must hold a JSON object: restore the file")
        if state.get("adapter") is not None:
            state["adapter"] = from_dict(AdapterConfig, state["adapter"], f"{path}, adapter")
        return from_dict(cls, state, str(path))


def check_margin(name: str, margin: object) -> None:
    """Raise InputError unless `margin` is None or a difference of cosines."""
    if margin is None:
        return
    if not is_number(margin) or not 0 <= margin <= 2:
        raise InputError(
            f"{name} must be a number from 0 to 2, a difference of cosines, or None, not {margin!r}"
        )


def check_prompts(prompts: object) -> None:
    """Raise InputError unless there is a prompt for queries and one for documents."""
    if not isinstance(prompts, dict) or set(prompts) != {"query", "document"}:
        raise InputError(f"prompts must have the two keys 'query' and 'document', not {prompts!r}")
    _texts("prompts", tuple(prompts.values()))


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an int, which a bool is not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is an int or a float."""
    return is_whole(value) or isinstance(value, float)


def _texts(name: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{name} must be texts, not {values!r}")
    return tuple(values)


def from_dict(cls: type[T], state: dict[str, Any], where: str) -> T:
    """Make a dataclass from a dict.

    Raises:
        InputError: A key is unknown or missing, or a value cannot be used; the message begins with
            `where`.
    """
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    check_known(state, known, f"{where} has an unknown key")
    try:
        return cls(**state)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except TypeError as error:
        raise InputError(f"{where} cannot be used ({error}): correct it") from None
