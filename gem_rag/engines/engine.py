"""`Engine`: what every engine does, whatever runs the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from gem_rag.core.arrays import FloatArray
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.layout import Row
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError
from gem_rag.generation.sampling import Generation, Sampling


class Engine(ABC):
    """A loaded model that embeds rows and continues token ids. Safe to use from many threads.

    Attributes:
        name: What `gem_rag.load` calls the engine.
        tokenizer: The model's tokenizer.
        dim: Length of an embedding.
        dtype: What the model computes in, as torch names it: "float32", "bfloat16", ...
        vocab_size: Token ids are below this.
        context_length: The most tokens of a prompt and its continuation together.
        max_text_tokens: The most text tokens in one embedding pass; leaves room for the special
            tokens.
        batch_tokens: Tokens in one embedding batch unless the caller says otherwise.
    """

    name: ClassVar[str]
    tokenizer: SafeTokenizer
    dim: int
    dtype: str
    vocab_size: int
    context_length: int
    max_text_tokens: int
    batch_tokens: int

    @abstractmethod
    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint; an engine's own options follow as keywords."""

    @abstractmethod
    def embed(self, rows: Sequence[Row]) -> FloatArray:
        """Unit vectors of one batch, one for each span, in order: float32 [spans, dim]."""

    def embed_batches(self, batches: Iterable[Sequence[Row]]) -> Iterator[FloatArray]:
        """What `embed` gives for each batch, in order; one may be running while the next is
        prepared."""
        return map(self.embed, batches)

    @abstractmethod
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generation]:
        """Continuations of prompts of token ids, in order, in batches of the engine's choice.

        Calls of many threads run together where the engine can.
        """

    @abstractmethod
    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Generator[str, None, Generation]:
        """Pieces of one continuation as they are generated; the return value is what `generate`
        gives, and the pieces joined are its text."""

    @abstractmethod
    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> FloatArray:
        """Mean log-probability of each second one's tokens after the first: float32 [pairs].

        What the first ones share is read once where the engine can.
        """

    def use_prefixes(self, folder: Path) -> bool:
        """Look for keys and values of prompts in a folder too; whether the engine does so."""
        return False

    def keep_prefixes(self, prompts: Sequence[Sequence[int]], folder: Path, max_bytes: int) -> int:
        """Read prompts and keep their keys and values in a folder, for as long as there is room;
        what else is there is removed.

        Args:
            prompts: Token ids, what matters most first.
            folder: Where to.
            max_bytes: Of all files in it.

        Returns:
            Of how many prompts there are keys and values now; none of those that are too short.

        Raises:
            InputError: The engine, or this model, keeps none.
        """
        raise InputError(
            f"the engine {self.name!r} has a prefix cache of its own, which cannot be filled "
            "beforehand: load the model with engine='transformers'"
        )

    @property
    @abstractmethod
    def num_generating(self) -> int:
        """How many texts are being generated, or wait for it."""

    @abstractmethod
    def close(self) -> None:
        """Free the weights."""

    def language_model(self) -> AbstractContextManager[Any]:
        """The plain causal language model; see `Gem.language_model`."""
        raise InputError(
            f"the engine {self.name!r} keeps its weights to itself: load the model with "
            "engine='transformers'"
        )
