"""Answers from passages, with citations that can be checked."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Unpack, get_args

from gem_rag.core.config import AnswerStyle, check_margin
from gem_rag.documents.document import Chunk
from gem_rag.errors import InputError
from gem_rag.generation.answer_prompt import answer_form, fill_prompt
from gem_rag.generation.grammars import quote_grammar
from gem_rag.generation.sampling import Generation, SamplingOptions, TextStream, normalize_stop
from gem_rag.model import Gem
from gem_rag.rag.citations import Citation, cite
from gem_rag.rag.extracts import extract_sentences, quoted
from gem_rag.rag.hits import Hit
from gem_rag.rag.quotes import cite_quotes, quotable
from gem_rag.rag.support import CheckedSentence, SentenceChecker, check_sentences

REFUSAL = "The passages do not answer this."
# A base model does not know where to end: a plain prompt's answer is one paragraph.
_PLAIN_STOP = ("\n\n", "\nQuestion:")
_MIN_PASSAGE = 40  # characters of a passage that is cut to fit
_QUOTES = {"quote": 1, "quotes": 3}  # at most, by style


@dataclass(frozen=True)
class Answer:
    """An answer and what it rests on.

    Attributes:
        text: The answer.
        citations: Quotes that are verbatim in a passage, or passages cited like [1].
        hits: The passages that were read, in the order of their numbers.
        unsupported: What style "checked" left out: sentences that no passage supports.
        timings: Seconds spent in "search" and "generate": of a streamed answer, its reader's too.
        usage: Tokens of the prompt, how many of those had been read before ("reused": their keys
            and values were at hand), and of what was generated; none where the model was not asked.
        is_cut: Whether `max_tokens` ended what was generated.
    """

    text: str
    citations: list[Citation]
    hits: list[Hit]
    unsupported: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    is_cut: bool = False


@dataclass(frozen=True)
class _Request:
    """A question as the model gets it.

    Attributes:
        prompt: Token ids.
        read: The passages in the prompt, or that sentences are taken out of; if there are none,
            the model is not asked.
        style: How the answer is written.
        sampling: How it is generated: with the style's grammar, or where a plain one ends.
    """

    prompt: list[int]
    read: list[Hit]
    style: AnswerStyle
    sampling: SamplingOptions

    @property
    def chunks(self) -> list[Chunk]:
        return [hit.chunk for hit in self.read]


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
            or `REFUSAL`; "quotes" to as many as three of them. "sentences" gives up to three
            sentences of the passages, those whose vectors are nearest to the question's, and their
            passages' numbers; nothing is generated. Default the checkpoint's own.
        margin: Passages that score lower than the best one by more than this are not read. Default
            the checkpoint's own (`answer_margin`); 2 reads all.
        **sampling: As for `Gem.generate`.

    Returns:
        The answer; `REFUSAL` if there are no passages.

    Raises:
        InputError: The question is empty, or leaves no room for a passage.
    """
    request = _prepare(gem, question, hits, style, margin, sampling)
    start = time.perf_counter()
    if request.style == "sentences":
        return _measured(_extracted_answer(gem, question, request), None, start)
    text, generation = REFUSAL, None
    if request.read:
        [generation] = gem.generate([request.prompt], **request.sampling)
        text = generation.text.strip()
    if request.style == "checked":
        found = _checked_answer(request, check_sentences(text, request.chunks))
    else:
        found = _cited_answer(request, text)
    return _measured(found, generation, start)


def stream_answer(
    gem: Gem,
    question: str,
    hits: Sequence[Hit],
    style: AnswerStyle | None = None,
    *,
    margin: float | None = None,
    **sampling: Unpack[SamplingOptions],
) -> Generator[str, None, Answer]:
    """As `answer`, piece by piece.

    Style "checked" gives a sentence when it has been checked, so that nothing is shown that is then
    left out; "sentences" gives whole ones too. The others give words as they are generated: what
    the grammar of quotes has let through is a quote, however it goes on.

    Args:
        gem: As for `answer`, which raises the same errors, like the rest.
        question: The question.
        hits: The passages.
        style: How answers are written.
        margin: How far below the best passage one is still read.
        **sampling: As for `Gem.stream`.

    Returns:
        A generator of pieces that together are the answer's text; its return value is the `Answer`.
    """
    request = _prepare(gem, question, hits, style, margin, sampling)
    if request.style == "sentences":
        return _stream_sentences(gem, question, request)
    pieces: Generator[str, None, Generation | None] = (text for text in (REFUSAL,))
    if request.read:
        pieces = gem.stream(request.prompt, **request.sampling)
    return _stream(request, pieces)


def check_question(question: str) -> None:
    """Raise InputError if a question is empty."""
    if not question.strip():
        raise InputError("the question is empty: ask something")


def check_style(style: str | None) -> None:
    """Raise InputError if there is no such style."""
    if style not in (None, *get_args(AnswerStyle)):
        raise InputError(f"there is no style {style!r}: use {', '.join(get_args(AnswerStyle))}")


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


def _prepare(
    gem: Gem,
    question: str,
    hits: Sequence[Hit],
    style: AnswerStyle | None,
    margin: float | None,
    options: SamplingOptions,
) -> _Request:
    check_style(style)
    check_margin("margin", margin)
    check_question(question)
    max_tokens = options.get("max_tokens") or max(16, min(256, gem.context_length // 4))
    sampling: SamplingOptions = {**options, "max_tokens": max_tokens}
    style = style or gem.config.answer_style
    near = _within_margin(hits, gem.config.answer_margin if margin is None else margin)
    if style == "sentences":
        return _Request([], list(near), style, sampling)
    prompt, read = _fit_prompt(gem, question, near, gem.context_length - max_tokens)
    if style in _QUOTES:
        sampling["grammar"] = quote_grammar(
            quotable([hit.chunk for hit in read]), REFUSAL, _QUOTES[style]
        )
    elif gem.config.answer_prompt is not None or not gem.has_chat_template:
        sampling["stop"] = [*normalize_stop(sampling.get("stop")), *_PLAIN_STOP]
    return _Request(prompt, read, style, sampling)


def _stream(
    request: _Request, pieces: Generator[str, None, Generation | None]
) -> Generator[str, None, Answer]:
    start = time.perf_counter()
    stream: TextStream[Any] = TextStream(pieces)
    with closing(pieces):
        if request.style == "checked":
            found = _checked_answer(request, (yield from _check_pieces(stream, request.chunks)))
        else:
            found = _cited_answer(request, (yield from _strip_pieces(stream)))
        return _measured(found, stream.generation, start)


def _strip_pieces(pieces: Iterable[str]) -> Generator[str, None, str]:
    """The pieces, without white space before and after the text, which is the return value."""
    text = held = ""
    for piece in pieces:
        held = held + piece if text else piece.lstrip()
        if shown := held.rstrip():
            held = held[len(shown) :]
            text += shown
            yield shown
    return text


def _check_pieces(
    pieces: Iterable[str], chunks: Sequence[Chunk]
) -> Generator[str, None, list[CheckedSentence]]:
    """The sentences that a passage supports, as they come; the return value is all of them."""
    checked: list[CheckedSentence] = []
    for sentence in SentenceChecker(chunks).check_pieces(pieces):
        if sentence.citation:
            yield (" " if _supported(checked) else "") + _numbered(sentence)
        checked.append(sentence)
    if not _supported(checked):
        yield REFUSAL
    return checked


def _checked_answer(request: _Request, checked: Sequence[CheckedSentence]) -> Answer:
    """The sentences that a passage supports, each with the passage's number."""
    kept = _supported(checked)
    text = " ".join(map(_numbered, kept)) or REFUSAL
    citations = [sentence.citation for sentence in kept if sentence.citation]
    # A model that refuses in our words has claimed nothing that could be left out.
    unsupported = [s.text for s in checked if not s.citation and s.text != REFUSAL]
    return Answer(text, citations, request.read, unsupported)


def _extracted_answer(gem: Gem, question: str, request: _Request) -> Answer:
    """The passages' sentences that are nearest to the question, each with its passage's number."""
    citations = extract_sentences(gem, question, request.chunks)
    text = " ".join(f"{quoted(one)} [{one.number}]" for one in citations)
    return Answer(text or REFUSAL, citations, request.read)


def _stream_sentences(gem: Gem, question: str, request: _Request) -> Generator[str, None, Answer]:
    start = time.perf_counter()
    found = _extracted_answer(gem, question, request)
    yield found.text
    return _measured(found, None, start)


def _supported(checked: Sequence[CheckedSentence]) -> list[CheckedSentence]:
    return [sentence for sentence in checked if sentence.citation]


def _numbered(sentence: CheckedSentence) -> str:
    return f"{sentence.text} [{sentence.citation.number}]" if sentence.citation else sentence.text


def _cited_answer(request: _Request, text: str) -> Answer:
    if request.style not in _QUOTES:
        citations = cite(text, request.chunks)
    elif REFUSAL.startswith(text):  # some of it, where max_tokens cut it
        citations = []
    else:
        citations = cite_quotes(text, request.chunks)
    return Answer(text, citations, request.read)


def _measured(answer: Answer, generation: Generation | None, start: float) -> Answer:
    """An answer with what it took."""
    timings = {"generate": time.perf_counter() - start}
    if generation is None:
        return dataclasses.replace(answer, timings=timings)
    usage = {
        "prompt": generation.prompt_tokens,
        "reused": generation.reused_tokens,
        "generated": len(generation.tokens),
    }
    is_cut = generation.finish_reason == "length"
    return dataclasses.replace(answer, timings=timings, usage=usage, is_cut=is_cut)


def _fit_prompt(
    gem: Gem, question: str, hits: Sequence[Hit], room: int
) -> tuple[list[int], list[Hit]]:
    """The prompt with the most passages that fits in `room` tokens, and those passages; nothing if
    there are none."""
    if not hits:
        return [], []
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
    prompt = fill_prompt(answer_form(gem.config), question, passages)
    if gem.config.answer_prompt is None and gem.has_chat_template:
        return gem.tokenize_chat([{"role": "user", "content": prompt}])
    return gem.tokenize(prompt)
