"""Answers from passages, with citations that can be checked."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Unpack, get_args

from gem_rag.core.config import AnswerStyle, check_margin
from gem_rag.documents.document import Chunk
from gem_rag.errors import InputError
from gem_rag.generation.grammars import quote_grammar
from gem_rag.generation.sampling import SamplingOptions, normalize_stop
from gem_rag.model import Gem
from gem_rag.rag.citations import Citation, cite, cite_span
from gem_rag.rag.hits import Hit
from gem_rag.rag.support import check_sentences

INSTRUCTIONS = (
    "Answer the question from the passages below, in their own words where you can, and cite "
    "them like [1]. If they do not answer it, say that they do not."
)
REFUSAL = "The passages do not answer this."
_PROMPT = f"{INSTRUCTIONS}\n\n{{passages}}\n\nQuestion: {{question}}\nAnswer:"
# A base model does not know where to end: a plain prompt's answer is one paragraph.
_PLAIN_STOP = ("\n\n", "\nQuestion:")
_MIN_PASSAGE = 40  # characters of a passage that is cut to fit
_NUMBER = re.compile(r" \[(\d+)\]")
_QUOTES = {"quote": 1, "quotes": 3}  # at most, by style


@dataclass(frozen=True)
class Answer:
    """An answer and what it rests on.

    Attributes:
        text: The answer.
        citations: Quotes that are verbatim in a passage, or passages cited like [1].
        hits: The passages that were read, in the order of their numbers.
        unsupported: What style "checked" left out: sentences that no passage supports.
        timings: Seconds spent in "search" and "generate".
    """

    text: str
    citations: list[Citation]
    hits: list[Hit]
    unsupported: list[str] = field(default_factory=list)
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
        style: "free" lets the model write. "checked" keeps those of its sentences that a passage
            supports (see `check_sentences`) and puts the passage's number after each; `REFUSAL` if
            there are none. "quote" constrains it to words of one passage and the passage's number,
            or `REFUSAL`; "quotes" to as many as three of them. Default the checkpoint's own.
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
    style = style or gem.config.answer_style
    unsupported: list[str] = []
    if style in _QUOTES:
        text, citations = _generate_quotes(gem, prompt, read, _QUOTES[style], sampling)
    else:
        text = _generate_freely(gem, prompt, sampling)
        chunks = [hit.chunk for hit in read]
        if style == "checked":
            text, citations, unsupported = _keep_supported(text, chunks)
        else:
            citations = cite(text, chunks)
    return Answer(text, citations, read, unsupported, {"generate": time.perf_counter() - start})


def check_style(style: str | None) -> None:
    """Raise InputError if there is no such style."""
    if style not in (None, *get_args(AnswerStyle)):
        raise InputError(f"there is no style {style!r}: use {', '.join(get_args(AnswerStyle))}")


def fill_prompt(form: str, question: str, passages: Sequence[str]) -> str:
    """Fill a prompt's {passages}, which are numbered, and its {question}."""
    numbered = "\n\n".join(f"[{n}] {passage}" for n, passage in enumerate(passages, start=1))
    # Split, not str.format: passages and questions may hold braces.
    values = {"{passages}": numbered, "{question}": question}
    parts = re.split(r"(\{passages\}|\{question\})", form)
    return "".join(values.get(part, part) for part in parts)


def beginnings(passage: str) -> Iterator[str]:
    """A passage, then what is left of it after cutting a fifth off its end, again and again: the
    first that fits a prompt is read."""
    yield passage
    while len(passage) > _MIN_PASSAGE:
        passage = passage[: len(passage) * 4 // 5]
        yield passage


def _within_margin(hits: Sequence[Hit], margin: float | None) -> Sequence[Hit]:
    if margin is None or not hits:
        return hits
    best = max(hit.score for hit in hits)
    return [hit for hit in hits if hit.score >= best - margin]


def _generate_freely(gem: Gem, prompt: list[int], sampling: SamplingOptions) -> str:
    if gem.config.answer_prompt is not None or not gem.has_chat_template:
        sampling["stop"] = [*normalize_stop(sampling.get("stop")), *_PLAIN_STOP]
    return gem.generate([prompt], **sampling)[0].text.strip()


def _keep_supported(text: str, chunks: Sequence[Chunk]) -> tuple[str, list[Citation], list[str]]:
    """The sentences that a passage supports, each with the passage's number, their citations, and
    the sentences that none supports."""
    checked = check_sentences(text, chunks)
    kept = [f"{s.text} [{s.citation.number}]" for s in checked if s.citation]
    citations = [sentence.citation for sentence in checked if sentence.citation]
    unsupported = [sentence.text for sentence in checked if not sentence.citation]
    return " ".join(kept) or REFUSAL, citations, unsupported


def _generate_quotes(
    gem: Gem, prompt: list[int], read: Sequence[Hit], most: int, sampling: SamplingOptions
) -> tuple[str, list[Citation]]:
    """Words of passages and their numbers, which the grammar leaves no way around, or a refusal."""
    passages = [" ".join(hit.chunk.passage.split()) for hit in read]
    sampling["grammar"] = quote_grammar(passages, REFUSAL, most)
    text = gem.generate([prompt], **sampling)[0].text.strip()
    if not text or REFUSAL.startswith(text):
        return text, []
    quotes = _read_quotes(text, passages)
    return text, [_cite_quote(number, read[number - 1].chunk, words) for number, words in quotes]


def _read_quotes(text: str, passages: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The numbers and words of quotes that stand one after another, like `words [1] words [2]`."""
    while text:
        for end in reversed(list(_NUMBER.finditer(text))):  # words may hold some [3] themselves
            number, words = int(end[1]), text[: end.start()]
            if 1 <= number <= len(passages) and words in passages[number - 1]:
                break
        else:  # cut by max_tokens before its number: the words are still one passage's
            holding = (n for n, passage in enumerate(passages, start=1) if text in passage)
            yield from ((number, text) for number in islice(holding, 1))
            return
        yield number, words
        text = text[end.end() :].lstrip()


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
    for count in range(len(hits), 1, -1):
        prompt = _build_prompt(gem, question, [hit.chunk.passage for hit in hits[:count]])
        if len(prompt) <= room:
            return prompt, list(hits[:count])
    for passage in beginnings(hits[0].chunk.passage):  # as much of one as fits
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
