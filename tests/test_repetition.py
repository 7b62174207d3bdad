"""What is repeated without end is found, and nothing else."""

from __future__ import annotations

import helpers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.generation.repetition import LoopBreaker, repeats_itself

TOKENIZER = SafeTokenizer(helpers.build_tokenizer())
SIZE = len(TOKENIZER.hf_tokenizer)
END = 1


@given(
    st.lists(st.integers(0, 50), max_size=60),
    st.lists(st.integers(0, 50), min_size=1, max_size=32),
)
def test_a_few_tokens_again_and_again(before: list[int], period: list[int]) -> None:
    times = max(4, -(-48 // len(period)) + 1)
    assert repeats_itself([*before, *period * times])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=32), st.integers(0, 200))
def test_a_text_with_something_new_does_not_repeat_itself(period: list[int], more: int) -> None:
    assert not repeats_itself([*period * 20, 99])
    assert not repeats_itself(list(range(more)))


@pytest.mark.parametrize(
    ("allowed", "kept"),
    [
        (["a", '"', ","], ['"']),  # within a string, where a comma is text
        (["0", ",", "}"], [",", "}"]),  # within a number
        (["0", "Z"], ["Z"]),  # within a time, which cannot end yet
        (["a", "b"], ["a", "b"]),  # nothing can end
    ],
)
def test_only_what_ends_something_is_left(allowed: list[str], kept: list[str]) -> None:
    def numbers(texts: list[str]) -> list[int]:
        return [next(i for i in range(SIZE) if TOKENIZER.decode([i]) == text) for text in texts]

    scores = torch.full((SIZE,), -torch.inf)
    scores[numbers(allowed)] = torch.arange(len(allowed)).float()
    breaker = LoopBreaker(TOKENIZER, [END], SIZE)
    assert torch.equal(breaker.apply(list(range(60)), scores), scores)
    found = breaker.apply([5] * 60, scores.clone())
    assert sorted(torch.isfinite(found).nonzero().flatten().tolist()) == sorted(numbers(kept))
    scores[END] = 0.0  # the text may end
    assert torch.isfinite(breaker.apply([5] * 60, scores)).nonzero().flatten().tolist() == [END]
