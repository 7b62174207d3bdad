"""`gem_config.json`: what makes an ordinary language-model folder a GEM checkpoint.

Knows nothing about weights, tokenizers or engines.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from gem_rag._utils.suggestions import check_choice, did_you_mean
from gem_rag.errors import InputError

CONFIG_NAME = "gem_config.json"
FORMAT_VERSION = 1
MAX_K = 16

Pooling = Literal["mean", "concat"]
Scope = Literal["full", "lora", "special"]
AnswerStyle = Literal["free", "quote"]
T = TypeVar("T")


@dataclass(frozen=True)
class AdapterConfig:
    """Low-rank adapters that act on special-token rows only.

    rank: inner dimension of every adapter.
    alpha: adapters are scaled by alpha / rank, as in LoRA (arXiv 2106.09685).
    targets: names of the adapted linear modules, relative to the base model.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise InputError(f"adapter rank must be at least 1, not {self.rank}")


@dataclass(frozen=True)
class GemConfig:
    """Everything gem-rag must know about a checkpoint that `config.json` does not say.

    k: special tokens per embedding, 1 to 16 (paper section 3).
    pooling: how the k output rows become one vector.
    scope: which weights GEM training moved; None means it has not been GEM-trained.
    tokens: the special tokens' names, used where a tokenizer must carry them (export, vLLM).
    prompts: text put before what is embedded, by use: "query" and "document".
    answer_prompt: the model's own form of a grounded question, with {passages} and {question};
        None leaves it to the chat template.
    answer_style: "free" writes an answer, "quote" words of one passage, word for word, or that
        none of them answers: for models too small to write, or where every word must be checked.
    answer_margin: passages whose cosine with the question is lower than the best one's by more than
        this are not read for an answer; None reads all. For models that find better than they read.
    max_length: most text tokens in one embedding pass; None means what the model can hold.
    adapter: the special-row adapters, if there are any.
    base_model: name of the model that was GEM-trained, for people to read.
    """

    k: int = 1
    pooling: Pooling = "mean"
    scope: Scope | None = None
    tokens: tuple[str, ...] = ()
    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    answer_prompt: str | None = None
    answer_style: AnswerStyle = "free"
    answer_margin: float | None = None
    max_length: int | None = None
    adapter: AdapterConfig | None = None
    base_model: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or not 1 <= self.k <= MAX_K:
            raise InputError(f"k must be a whole number from 1 to {MAX_K}, not {self.k!r}: "
                             "an embedding is read from k special tokens")  # fmt: skip
        check_choice("pooling", self.pooling, get_args(Pooling))
        check_choice("answer_style", self.answer_style, get_args(AnswerStyle))
        check_margin("answer_margin", self.answer_margin)
        if self.scope is not None:
            check_choice("scope", self.scope, get_args(Scope))
        if self.format_version != FORMAT_VERSION:
            raise InputError(
                f"{CONFIG_NAME} has format version {self.format_version}, this gem-rag reads "
                f"{FORMAT_VERSION}: install the gem-rag that wrote it"
            )
        tokens = tuple(self.tokens) or tuple(f"<|gem_{i}|>" for i in range(1, self.k + 1))
        object.__setattr__(self, "tokens", tokens)
        if len(set(tokens)) != self.k:
            raise InputError(f"k is {self.k}, so tokens must be {self.k} different names: {tokens}")
        check_prompts(self.prompts)
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length must be at least 1, not {self.max_length}")

    def dim(self, hidden: int) -> int:
        """Length of an embedding of a model whose outputs have this length."""
        return hidden * self.k if self.pooling == "concat" else hidden

    def vector_state(self) -> dict[str, Any]:
        """The part that changes vectors, for the fingerprint."""
        state = dataclasses.asdict(self)
        other = ("tokens", "answer_prompt", "answer_style", "answer_margin", "base_model", "scope")
        for name in other:
            del state[name]
        return state

    def save(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> GemConfig | None:
        """The folder's GEM configuration, or None where it has none (a plain language model).

        Raises InputError if the file is there and cannot be used.
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
    """Raises InputError unless it is None or a difference of cosines."""
    if margin is None:
        return
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= 2:
        raise InputError(
            f"{name} must be a number from 0 to 2, a difference of cosines, or None, not {margin!r}"
        )


def check_prompts(prompts: object) -> None:
    """Raises InputError unless there is a prompt for queries and one for documents."""
    if not isinstance(prompts, dict) or set(prompts) != {"query", "document"}:
        raise InputError(f"prompts must have the two keys 'query' and 'document', not {prompts!r}")


def from_dict(cls: type[T], state: dict[str, Any], where: str) -> T:
    """A dataclass from a dict; an unknown key raises InputError with the nearest right name.

    A missing key, or a value of a type that the class cannot use, raises InputError too.
    """
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in state:
        if key not in known:
            raise InputError(f"{where} has an unknown key {key!r}{did_you_mean(key, known)}")
    try:
        return cls(**state)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except TypeError as error:
        raise InputError(f"{where} cannot be used ({error}): correct it") from None
