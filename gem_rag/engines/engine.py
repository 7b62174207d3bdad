"""What an engine must do, and what it hands back.

Knows nothing about how any engine does it, nor about prompts and long texts (see `model.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

from gem_rag.core.arrays import FloatArray
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.layout import Row
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.generation.sampling import Generation, Sampling


class Engine(ABC):
    """A loaded model that embeds rows and continues token ids. Safe to use from many threads.

    text: the model's tokenizer.
    dim: length of an embedding.
    vocabulary: token ids are below this.
    context: most positions in one sequence.
    longest_text: most text tokens in one embedding pass; leaves room for the special tokens.
    batch_tokens: tokens in one batch unless the caller says otherwise.
    """

    text: SafeTokenizer
    dim: int
    vocabulary: int
    context: int
    longest_text: int
    batch_tokens: int

    @abstractmethod
    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint; an engine's own options follow as keywords."""

    @abstractmethod
    def embed(self, rows: Sequence[Row]) -> FloatArray:
        """Unit vectors of one batch, one for each span, in order: [spans, dim]."""

    @abstractmethod
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generation]:
        """Continuations of prompts of token ids, in order; calls of many threads run together."""

    @abstractmethod
    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Generator[str, None, Generation]:
        """Pieces of one continuation as they come; joined, they are what `generate` gives, and
        what the generator returns."""

    @abstractmethod
    def score(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> FloatArray:
        """Mean log-probability of each continuation's tokens after the prompt, in order."""

    @abstractmethod
    def close(self) -> None:
        """Free the weights."""
