"""What is said to the workers, and what they answer, over `collective_rpc`.

Plain lists, numbers and bytes only, which every executor can carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gem_rag.core.arrays import FloatArray
from gem_rag.core.layout import Row
from gem_rag.engines.vllm.embedding_queue import EmbeddingQueue
from gem_rag.errors import GemError, InputError

LOAD, EMBED = "gem_load", "gem_embed"  # the worker extension's methods
PlainRow = tuple[list[int], list[list[int]]]  # token ids, and spans
_STEPS = 4  # of vLLM's in a batch: the special rows' pass reads every weight for a few rows


@dataclass(frozen=True)
class WorkerCapabilities:
    """What the workers can do, as `gem_load` answers; the least able one counts.

    hidden: length of one special token's output.
    max_text_tokens: most text tokens in one pass.
    max_step_tokens: most tokens vLLM itself runs in one step.
    free_bytes: memory that vLLM left free.
    bytes_per_token: memory that an embedding pass needs beyond vLLM's own.
    """

    hidden: int
    max_text_tokens: int
    max_step_tokens: int
    free_bytes: int
    bytes_per_token: int

    @classmethod
    def of(cls, answers: Sequence[dict[str, Any]]) -> WorkerCapabilities:
        """Raises GemError with a worker's reason if it cannot embed."""
        _raise_error(answers)
        first = cls(**answers[0])
        return cls(
            first.hidden,
            first.max_text_tokens,
            first.max_step_tokens,
            min(answer["free_bytes"] for answer in answers),
            first.bytes_per_token,
        )

    @property
    def batch_tokens(self) -> int:
        """Tokens in a batch: a few of vLLM's steps, whose special rows then run together, if half
        of the free memory holds them."""
        return max(1, min(_STEPS * self.max_step_tokens, self.max_affordable_tokens // 2))

    @property
    def max_affordable_tokens(self) -> int:
        """Tokens that the free memory holds."""
        return self.free_bytes // self.bytes_per_token

    def queue(self, k: int, share: float) -> EmbeddingQueue:
        """Where rows wait for these workers."""
        return EmbeddingQueue(k, self.batch_tokens, self.max_step_tokens, share)

    def check(self, rows: Sequence[Row], k: int) -> None:
        """Raises GemError for a row that does not fit into the memory that vLLM left free."""
        longest = max((row.length(k) for row in rows), default=0)
        if longest > self.max_affordable_tokens:
            needed = longest * self.bytes_per_token
            raise GemError(
                f"a text of {longest} tokens needs {needed >> 20} MiB and vLLM left "
                f"{self.free_bytes >> 20} MiB free: lower gpu_memory_utilization, or set "
                "kv_cache_memory_bytes"
            )


def serialize_rows(rows: Sequence[Row]) -> list[PlainRow]:
    return [(list(row.text), [list(span) for span in row.spans]) for row in rows]


def deserialize_rows(rows: Sequence[PlainRow]) -> list[Row]:
    return [Row(ids, tuple((start, stop) for start, stop in spans)) for ids, spans in rows]


def vectors(answers: Sequence[dict[str, Any]]) -> FloatArray:
    """The vectors in the workers' answers to `gem_embed`: float32 [spans, dim].

    Raises GemError with a worker's reason if it could not embed.
    """
    _raise_error(answers)
    return np.frombuffer(answers[0]["vectors"], dtype=np.float32).reshape(answers[0]["shape"])


def _raise_error(answers: Sequence[dict[str, Any]]) -> None:
    for answer in answers:
        if "error" in answer:
            raise (InputError if answer.get("input") else GemError)(answer["error"])
