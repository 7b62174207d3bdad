"""Texts of a grammar that repeat themselves: a value that would go on to the limit is ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gem_rag.core.tokenizer import SafeTokenizer

_PERIOD = 32  # tokens, at most, that are repeated
_REPEATS = 4  # times, at least
_LEAST = 48  # tokens of repetition, at least
_FORMAT_ENDS = ("Z", "@", ":", "S", "D", ".")  # of a time, a user's name, a scheme, a duration


class LoopBreaker:
    """Ends what a model repeats without end: a text, or a string or number of a JSON text.

    Lists and objects go on, since their items may well be equal. For texts that are held to a
    grammar, which allows an end only where there can be one.

    Args:
        tokenizer: The model's tokenizer.
        ends: Tokens that end a text.
        size: Of the vocabulary.
    """

    def __init__(self, tokenizer: SafeTokenizer, ends: Iterable[int], size: int) -> None:
        self._tokenizer, self._ends, self._size = tokenizer, list(ends), size

    def apply(self, tokens: Sequence[int], scores: Tensor) -> Tensor:
        """Scores of the next token, where only those that end something may be left.

        Args:
            tokens: What has been written.
            scores: [vocabulary]; -inf for tokens that the grammar does not allow.
        """
        if not repeats_itself(tokens):
            return scores
        for group in self._groups:
            own = torch.tensor(group, dtype=torch.long, device=scores.device)
            own = own[scores[own] > -torch.inf]
            if len(own):
                kept = torch.full_like(scores, -torch.inf)
                kept[own] = scores[own]
                return kept
        return scores

    @cached_property
    def _groups(self) -> list[list[int]]:
        """Tokens that end a text, a string, a number, and a part of what has a format; where one
        may end, those after it are not allowed, or are part of it."""
        texts = [self._tokenizer.decode([token]).lstrip() for token in range(self._size)]
        return [
            self._ends,
            [token for token, text in enumerate(texts) if text.startswith('"')],
            [token for token, text in enumerate(texts) if text.startswith((",", "}", "]"))],
            [token for token, text in enumerate(texts) if text in _FORMAT_ENDS],
        ]


def repeats_itself(tokens: Sequence[Any]) -> bool:
    """Whether the last tokens are a few that come again and again."""
    for period in range(1, _PERIOD + 1):
        length = max(_LEAST, _REPEATS * period)
        if len(tokens) < length:
            continue
        last = tokens[len(tokens) - length :]
        if last[period:] == last[:-period]:
            return True
    return False
