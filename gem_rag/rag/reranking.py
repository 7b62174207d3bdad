"""Hits in a better order: the model that found them reads each one together with the question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from gem_rag._utils.suggestions import check_choice
from gem_rag.core.arrays import FloatArray
from gem_rag.errors import InputError
from gem_rag.generation.answer_prompt import fill_prompt
from gem_rag.model import Gem
from gem_rag.rag.answer import beginnings
from gem_rag.rag.fusion import reciprocal_rank_fusion
from gem_rag.rag.hits import Hit

Method = Literal["likelihood", "yes-no"]
RERANKED = 20  # hits of a search that are worth the time
_PLAIN = "Passages:\n{passages}\n\nQuestion:"
_WRITE = "Please write a question based on this passage."
_JUDGE = "Does the passage answer the query?"


def rerank(
    gem: Gem, question: str, hits: Sequence[Hit], *, method: Method = "likelihood"
) -> list[Hit]:
    """Put hits in the order of two rankings fused, by reciprocal ranks: theirs, and `relevance`.

    On small samples "likelihood" put what vectors had found in a better order (gem-tiny, headings
    of a manual: MRR .38 before, .47 after), and what vectors and words had found together in
    about the same (.59 and .57), at twenty passages to read for a question. Likelihoods alone, and
    their sum with cosines, lost more. "yes-no" is for models that are large enough to judge: it
    made the order of gem-tiny and of gem-smollm2-135m much worse.

    Args:
        gem: The model.
        question: What was searched for.
        hits: What was found, best first.
        method: As of `relevance`.

    Returns:
        The same hits, best first, their scores (cosines) as they were. Of equal ones, what came
        first stays first.

    Raises:
        InputError: As `relevance`.
    """
    order = best_first(gem, question, [hit.chunk.passage for hit in hits], method)
    return [hits[place] for place in order]


def best_first(
    gem: Gem, question: str, passages: Sequence[str], method: Method = "likelihood"
) -> list[int]:
    """As `rerank`, the places of passages, which are given best first."""
    scores = relevance(gem, question, passages, method)
    found = -np.arange(len(passages), dtype=np.float32)
    [sums] = reciprocal_rank_fusion(found[None], scores[None])
    return [int(place) for place in np.argsort(-sums, kind="stable")]


def relevance(
    gem: Gem, question: str, passages: Sequence[str], method: Method = "likelihood"
) -> FloatArray:
    """How well passages answer a question, by what the model expects to read after them.

    A passage that does not fit the model's context is cut to its beginning.

    Args:
        gem: The model.
        question: The question.
        passages: The passages.
        method: "likelihood": how likely the question is after the passage (query likelihood, Sachan
            et al., EMNLP 2022), the mean log-probability of its tokens in nats. "yes-no": by how
            many nats "Yes" is likelier than "No" where the model is asked whether the passage
            answers it.

    Returns:
        Higher is better; only differences between passages mean anything: float32 [passages].

    Raises:
        InputError: There is no such method, or the question is empty or leaves no room for a
            passage.
    """
    check_choice("method", method, get_args(Method))
    if not question.strip():
        raise InputError("the question is empty: ask something")
    return _METHODS[method](gem, question, passages)


def _likelihoods(gem: Gem, question: str, passages: Sequence[str]) -> FloatArray:
    """The question's mean log-probability after each passage."""
    before = _before_question(gem)
    chat = before is None and gem.has_chat_template

    def build(passage: str) -> list[int]:
        if chat:
            return _chat(gem, f"Passage: {passage}\n{_WRITE}")
        return gem.tokenize(fill_prompt(before or _PLAIN, question, [passage]))

    scores = _scores(gem, build, passages, [question if chat else f" {question}"])
    return scores[0]


def _before_question(gem: Gem) -> str | None:
    """What the checkpoint's own prompt has before the question, if passages are in it."""
    before, found, _ = (gem.config.answer_prompt or "").partition("{question}")
    return before.rstrip(" ") if found and "{passages}" in before else None


def _yes_over_no(gem: Gem, question: str, passages: Sequence[str]) -> FloatArray:
    """The log-probability of "Yes" less that of "No"."""

    def build(passage: str) -> list[int]:
        text = f"Passage: {passage}\n\nQuery: {question}\n\n{_JUDGE}"
        return _chat(gem, text) if chat else gem.tokenize(text)

    chat = gem.config.answer_prompt is None and gem.has_chat_template
    words = ["Yes", "No"] if chat else [" Yes", " No"]
    means = _scores(gem, build, passages, words)
    yes, no = (mean * _count(gem, word) for mean, word in zip(means, words, strict=True))
    return yes - no


_METHODS: dict[Method, Callable[[Gem, str, Sequence[str]], FloatArray]] = {
    "likelihood": _likelihoods,
    "yes-no": _yes_over_no,
}


def _scores(
    gem: Gem, build: Callable[[str], list[int]], passages: Sequence[str], texts: Sequence[str]
) -> FloatArray:
    """Mean log-probabilities of texts after each passage's prompt: float32 [texts, passages]."""
    room = gem.context_length - max(_count(gem, text) for text in texts)
    prompts = [_fit(gem, build, passage, room) for passage in passages]
    scores = gem.score_pairs([(prompt, text) for text in texts for prompt in prompts])
    return scores.reshape(len(texts), len(passages))


def _fit(gem: Gem, build: Callable[[str], list[int]], passage: str, room: int) -> list[int]:
    """A prompt of at most `room` tokens with as much of a passage's beginning as fits."""
    for part in beginnings(passage):
        prompt = build(part)
        if len(prompt) <= room:
            return prompt
    raise InputError(
        f"the question leaves no room for a passage in the model's {gem.context_length} tokens: "
        "ask a shorter one"
    )


def _chat(gem: Gem, text: str) -> list[int]:
    return gem.tokenize_chat([{"role": "user", "content": text}])


def _count(gem: Gem, text: str) -> int:
    """Tokens of a text that continues another."""
    return len(gem.tokenizer.encode(text, add_special_tokens=False).ids)
