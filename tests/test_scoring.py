"""How likely texts are after prompts: what the model alone says, however they are batched."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from families import EVERY_FAMILY, build_family

from gem_rag.engines.decoding import DecodingBatch, batch_kind
from gem_rag.engines.scoring import Pair, mean_log_probs
from gem_rag.errors import InputError
from gem_rag.model import Gem, Prompt

FEW = ("llama", "mistral", "opt", "gpt2", "gemma3_text", "mixtral", "mamba", "lfm2")
OTHERS = tuple(sorted({*EVERY_FAMILY} - {*FEW}))


def random_pairs(*sizes: tuple[int, int], shared: int = 0) -> list[Pair]:
    """Pairs of so many tokens each, whose prompts begin with the same ones."""
    source = torch.Generator().manual_seed(0)
    head = helpers.random_ids(shared, source)
    return [
        ([*head, *helpers.random_ids(prompt - shared, source)], helpers.random_ids(text, source))
        for prompt, text in sizes
    ]


def alone(model: Any, pairs: Sequence[Pair]) -> list[float]:
    """Mean log-probabilities by a pass for each pair, without padding, masks or caches."""
    means = []
    for prompt, tokens in pairs:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0]
        predicted = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
        means.append(float(predicted[range(len(tokens)), list(tokens)].mean()))
    return means


def together(model: Any, pairs: Sequence[Pair], budget: int = 2000) -> np.ndarray:
    return mean_log_probs(model, pairs, budget=budget, pad=helpers.PAD, turn=threading.Lock())


class Passes:
    """The shapes of the ids that a model reads while the block runs."""

    def __init__(self, model: Any) -> None:
        self.model, self.shapes = model, list[tuple[int, ...]]()

    def __enter__(self) -> list[tuple[int, ...]]:
        self._hook = self.model.register_forward_pre_hook(
            lambda module, args: self.shapes.append(tuple(args[0].shape))
        )
        return self.shapes

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize(
    "family", [*FEW, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in OTHERS)]
)
def test_scores_are_those_of_the_model_alone(family: str) -> None:
    model = build_family(family)
    for shared in (0, 20):
        pairs = random_pairs((40, 3), (21, 9), (64, 1), (30, 5), shared=shared)
        # Two that differ in their last token, and one that begins as they do.
        prompt, tokens = pairs[0]
        pairs += [(prompt, [*tokens[:-1], 7]), (prompt, [9]), (prompt, [10])]
        pad = helpers.PAD if batch_kind(model) is DecodingBatch else None
        found = mean_log_probs(model, pairs, budget=2000, pad=pad, turn=threading.Lock())
        assert np.allclose(found, alone(model, pairs), atol=2e-4)


def test_a_window_of_attention_is_one_after_a_shared_prompt_too() -> None:
    model = build_family("mistral", sliding_window=8)
    pairs = random_pairs((40, 3), (33, 9), (50, 2), shared=30)
    assert np.allclose(together(model, pairs), alone(model, pairs), atol=1e-5)


def test_batches_keep_to_their_budget() -> None:
    model, pairs = build_family("llama"), random_pairs(*[(20 + n, 4) for n in range(12)])
    with Passes(model) as shapes:
        found = together(model, pairs, budget=100)
    assert len(shapes) > 3
    assert all(rows * width <= 100 for rows, width in shapes)
    assert np.allclose(found, together(model, pairs), atol=1e-5)


def test_a_shared_beginning_is_read_once() -> None:
    model, pairs = build_family("llama"), random_pairs((60, 4), (70, 6), (64, 2), shared=50)
    with Passes(model) as shapes:
        together(model, pairs)
    assert shapes == [(1, 50), (3, 25)]  # 70 + 6 tokens, less the last and those that are shared
    with Passes(model) as shapes:
        together(model, pairs[:1])
    assert shapes == [(1, 63)]


def test_words_to_choose_from_take_one_row() -> None:
    model, [(prompt, _)] = build_family("llama"), random_pairs((60, 1))
    with Passes(model) as shapes:
        found = together(model, [(prompt, [token]) for token in (5, 6, 7)])
    assert shapes == [(1, 60)]
    assert len({*found.tolist()}) == 3


def test_a_prompt_that_is_all_shared_still_predicts() -> None:
    model = build_family("llama")
    [(prompt, tokens)] = random_pairs((30, 8))
    pairs: list[Pair] = [(prompt, tokens), (prompt, tokens[::-1]), (prompt[:20], tokens)]
    assert np.allclose(together(model, pairs), alone(model, pairs), atol=1e-5)


def test_nothing_is_scored_of_nothing() -> None:
    assert together(build_family("llama"), []).shape == (0,)


def test_pairs_are_scored_as_one_by_one(gem: Gem) -> None:
    pairs = [("A pump", " moves water"), ("A", " lamp gives light"), (gem.tokenize("Doors"), ".")]
    found = gem.score_pairs(pairs)
    assert found.dtype == np.float32
    for (prompt, text), score in zip(pairs, found, strict=True):
        assert np.allclose(gem.score(prompt, [text]), score, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "text", "reason"),
    [([], "text", "the prompt is empty"), ("prompt", "", "has 0 tokens after a prompt of"),
     ("prompt " * 300, "text", "the model's context is 256")],
)  # fmt: skip
def test_pairs_that_cannot_be_scored_are_refused(
    gem: Gem, prompt: Prompt, text: str, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        gem.score_pairs([("fine", " one"), (prompt, text)])
