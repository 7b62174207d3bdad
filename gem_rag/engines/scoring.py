"""How likely texts are after prompts: many in one pass, and what their prompts share read once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from gem_rag.core.arrays import FloatArray
from gem_rag.core.layout import plan_batches
from gem_rag.engines.decoding import forward, pad_left

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt, and of what continues it
_LEAST_SHARED = 16  # tokens: for fewer, a pass of their own takes longer than it saves


@dataclass
class _Row:
    """Tokens that are read for one or more pairs.

    Attributes:
        ids: A prompt, and all of its continuation but the last token, which is only predicted: so
            continuations that differ in it alone, like two words to choose from, share a row.
        pairs: Numbers of the pairs.
        scored: At how many of the last positions predictions are wanted.
    """

    ids: tuple[int, ...]
    pairs: list[int] = field(default_factory=list)
    scored: int = 1


def mean_log_probs(
    model: Any,
    pairs: Sequence[Pair],
    *,
    budget: int,
    pad: int | None,
    turn: AbstractContextManager[None],
) -> FloatArray:
    """Mean log-probability of each continuation's tokens after its prompt, in nats.

    Args:
        model: The language model.
        pairs: Prompts and continuations, of at least one token each.
        budget: The most positions in a batch.
        pad: Token id of padding, for a model that may be padded on the left and keeps nothing but
            keys and values of what it has read; None for others, which read one text at a time.
        turn: Held while the model runs, for a pass at a time.

    Returns:
        float32 [pairs].
    """
    scores = np.empty(len(pairs), dtype=np.float32)
    rows = _rows(pairs)
    passes = _alone(model, rows, turn) if pad is None else _together(model, rows, budget, pad, turn)
    for row, logits in passes:
        log_probs = logits.float().log_softmax(-1)
        for number in row.pairs:
            tokens = torch.tensor(pairs[number][1], device=log_probs.device)
            scores[number] = log_probs[-len(tokens) :].gather(-1, tokens[:, None]).mean().item()
    return scores


def _rows(pairs: Sequence[Pair]) -> list[_Row]:
    rows: dict[tuple[int, ...], _Row] = {}
    for number, (prompt, tokens) in enumerate(pairs):
        ids = (*prompt, *tokens[:-1])
        row = rows.setdefault(ids, _Row(ids))
        row.pairs.append(number)
        row.scored = max(row.scored, len(tokens))
    return list(rows.values())


def _alone(
    model: Any, rows: Sequence[_Row], turn: AbstractContextManager[None]
) -> Iterator[tuple[_Row, Tensor]]:
    """Each row, and its scored positions' logits: [scored, vocabulary]."""
    for row in rows:
        ids = torch.tensor([row.ids], device=model.device)
        with turn, torch.inference_mode():
            logits = model(ids, logits_to_keep=row.scored, use_cache=False).logits
        yield row, logits[0, -row.scored :]


def _together(
    model: Any, rows: Sequence[_Row], budget: int, pad: int, turn: AbstractContextManager[None]
) -> Iterator[tuple[_Row, Tensor]]:
    """As `_alone`, in batches, whose rows end in the same column."""
    shared = _shared_prefix(rows)
    cache = DynamicCache() if shared else None
    if cache is not None:
        with turn, torch.inference_mode():
            forward(model, *pad_left([shared], pad, model.device), cache)
    for batch in plan_batches([len(row.ids) for row in rows], budget):
        chosen = [rows[number] for number in batch]
        ids, mask = pad_left([row.ids for row in chosen], pad, model.device)
        kept = max(row.scored for row in chosen)
        with turn, torch.inference_mode():
            own = _cut_cache(cache, mask[:, : len(shared)].sum(dim=1).tolist()) if shared else None
            logits = forward(model, ids[:, len(shared) :], mask, own, kept)
        yield from zip(chosen, logits, strict=True)


def _cut_cache(cache: DynamicCache, lengths: Sequence[int]) -> DynamicCache:
    """A cache with the first so many tokens of a text in each row, padded on the left.

    Rows that are shorter than others begin further to the right, so the columns that are in the
    cache hold less of the text, and some of it is read again. Were it all in the cache, padding
    would have to come after it, and a sliding window counts columns.
    """
    own = copy.deepcopy(cache)
    for layer in own.layers:
        for name in ("keys", "values"):
            part = getattr(layer, name)
            padding = [(0, 0, part.shape[2] - length, 0) for length in lengths]
            cut = [F.pad(part[:, :, :n], by) for n, by in zip(lengths, padding, strict=True)]
            setattr(layer, name, torch.cat(cut))
    return own


def _shared_prefix(rows: Sequence[_Row]) -> tuple[int, ...]:
    """What all rows begin with, where reading it once is worth a pass."""
    if len(rows) < 2:
        return ()
    heads = [row.ids[: -row.scored] for row in rows]
    ends = zip(min(heads), max(heads), strict=False)  # what is between them begins as they both do
    shared = tuple(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends))
    return shared if len(shared) >= _LEAST_SHARED else ()
