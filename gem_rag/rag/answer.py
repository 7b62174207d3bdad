"""Answers from passages, with citations that can be checked."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Unpack, get_args

from gem_rag.core.config import AnswerStyle, check_margin
from gem_rag.documents.document import Chunk
from gem_rag.errors import InputError
from gem_rag.generation.grammars import quote_grammar
from gem_rag.generation.sampling import SamplingOptions, normalize_stop
from gem_rag.model import Gem
from gem_rag.rag.citations import Citation, cite, cite_span
from gem_rag.rag.hits import Hit

INSTRUCTIONS = (
    "Answer the question from the passages below, in their own words where you can, and cite "
    "them like [1]. If they do not answer it, say that they do not."
)
REFUSAL = "The passages do not answer this."
_PROMPT = f"{INSTRUCTIONS}\n\n{{passages}}\n\nQuestion: {{question}}\nAnswer:"
# A base model does not know where to end: a plain prompt's answer is one paragraph.
_PLAIN_STOP = ("\n\n", "\nQuestion:")
_MIN_PASSAGE = 40  # characters of a passage that is cut to fit
_QUOTED = re.compile(r"(?P<words>.+) \[(?P<number>\d+)\]")


@dataclass(frozen=True)
class Answer:
    """An answer and what it rests on.

    Attributes:
        text: The answer.
        citations: Quotes that are verbatim in a passage, or passages cited like [1].
        hits: The passages that were read, in the order of their numbers.
        timings: Seconds spent in "search" and "generate".
    """

    text: str
    citations: list[Citation]
    hits: list[Hit]
    timings: dict[str, float] = field(default_factory=dict)


def answer(
    gem: Gem,
    question: str,
    hits: Sequence[Hit],
    style: AnswerStyle | None = None,
    *,
    margin: float | None = None,
    **sampling: Unpack[SamplingOptions],
) -> Answer:
    """Answer a question from passages, as many of them as fit the model's context.

    The prompt is the checkpoint's own (`answer_prompt`), else its chat template's, else plain.

    Args:
        gem: The model.
        question: The question.
        hits: The passages.
        style: "free" lets the model write; "quote" constrains it to words of one passage and the
            passage's number, or `REFUSAL`. Default the checkpoint's own.
        margin: Passages that score lower than the best one by more than this are not read. Default
            the checkpoint's own (`answer_margin`); 2 reads all.
        **sampling: As for `Gem.generate`.

    Returns:
        The answer.

    Raises:
        InputError: The question is empty, or leaves no room for a passage.
    """
    check_style(style)
    check_margin("margin", margin)
    if not question.strip():
        raise InputError("the question is empty: ask something")
    max_tokens = sampling.get("max_tokens") or max(16, min(256, gem.context_length // 4))
    sampling["max_tokens"] = max_tokens
    margin = gem.config.answer_margin if margin is None else margin
    prompt, read = _fit_prompt(
        gem, question, _within_margin(hits, margin), gem.context_length - max_tokens
    )
    start = time.perf_counter()
    if (style or gem.config.answer_style) == "quote":
        text, citations = _generate_quote(gem, prompt, read, sampling)
    else:
        text = _generate_freely(gem, prompt, sampling)
        citations = cite(text, [hit.chunk for hit in read])
    return Answer(text, citations, read, {"generate": time.perf_counter() - start})


def check_style(style: str | None) -> None:
    """Raise InputError if there is no such style."""
    if style not in (None, *get_args(AnswerStyle)):
        raise InputError(f"there is no style {style!r}: use {' or '.join(get_args(AnswerStyle))}")


def fill_prompt(form: str, question: str, passages: Sequence[str]) -> str:
    """Fill a prompt's {passages}, which are numbered, and its {question}."""
    numbered = "\n\n".join(f"[{n}] {passage}" for n, passage in enumerate(passages, start=1))
    # Split, not str.format: passages and questions may hold braces.
    values = {"{passages}": numbered, "{question}": question}
    parts = re.split(r"(\{passages\}|\{question\})", form)
    return "".join(values.get(part, part) for part in parts)


def _within_margin(hits: Sequence[Hit], margin: float | None) -> Sequence[Hit]:
    if margin is None or not hits:
        return hits
    best = max(hit.score for hit in hits)
    return [hit for hit in hits if hit.score >= best - margin]


def _generate_freely(gem: Gem, prompt: list[int], sampling: SamplingOptions) -> str:
    if gem.config.answer_prompt is not None or not gem.has_chat_template:
        sampling["stop"] = [*normalize_stop(sampling.get("stop")), *_PLAIN_STOP]
    return gem.generate([prompt], **sampling)[0].text.strip()


def _generate_quote(
    gem: Gem, prompt: list[int], read: Sequence[Hit], sampling: SamplingOptions
) -> tuple[str, list[Citation]]:
    """Words of one passage and its number, which the grammar leaves no way around, or a refusal."""
    passages = [" ".join(hit.chunk.passage.split()) for hit in read]
    sampling["grammar"] = quote_grammar(passages, REFUSAL)
    generation = gem.generate([prompt], **sampling)[0]
    text = generation.text.strip()
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        number = int(quoted["number"])
        return text, [_cite_quote(number, read[number - 1].chunk, quoted["words"])]
    if not text or REFUSAL.startswith(text):
        return text, []
    # Cut by max_tokens before its number: the words are still one passage's.
    holding = (n for n, passage in enumerate(passages, start=1) if text in passage)
    number = next(holding, 0)
    return text, [_cite_quote(number, read[number - 1].chunk, text)] if number else []


def _cite_quote(number: int, chunk: Chunk, words: str) -> Citation:
    """Where a quote is in the chunk's text; the whole chunk for words of its title."""
    pattern = r"\s+".join(map(re.escape, words.split()))
    match = re.search(pattern, chunk.text)
    start, stop = match.span() if match else (0, len(chunk.text))
    return cite_span(number, chunk, start, stop)


def _fit_prompt(
    gem: Gem, question: str, hits: Sequence[Hit], room: int
) -> tuple[list[int], list[Hit]]:
    """The prompt with the most passages that fits in `room` tokens, and those passages."""
    for count in range(len(hits), 0, -1):
        prompt = _build_prompt(gem, question, [hit.chunk.passage for hit in hits[:count]])
        if len(prompt) <= room:
            return prompt, list(hits[:count])
    passage = hits[0].chunk.passage
    while len(passage) > _MIN_PASSAGE:  # one passage, as much of its beginning as fits
        passage = passage[: len(passage) * 4 // 5]
        prompt = _build_prompt(gem, question, [passage])
        if len(prompt) <= room:
            return prompt, [hits[0]]
    raise InputError(
        f"the question leaves no room for a passage in the model's {gem.context_length} tokens: "
        "ask a shorter one, or lower max_tokens"
    )


def _build_prompt(gem: Gem, question: str, passages: Sequence[str]) -> list[int]:
    prompt = fill_prompt(gem.config.answer_prompt or _PROMPT, question, passages)
    if gem.config.answer_prompt is None and gem.has_chat_template:
        return gem.tokenize_chat([{"role": "user", "content": prompt}])
    return gem.tokenize(prompt)
