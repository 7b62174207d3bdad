"""Writing questions in batches; what is written is kept, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gem_rag._utils.files import write_atomically
from gem_rag._utils.progress import progress_bar
from gem_rag.errors import GemError
from gem_rag.model import Gem
from gem_rag.pairs.filters import says_something
from gem_rag.pairs.kinds import KINDS
from gem_rag.pairs.pair import Pair
from gem_rag.pairs.passages import Passage
from gem_rag.pairs.questions import (
    MAX_TOKENS,
    SCHEMA,
    prompt_for,
    read_question,
    repeats_prompt,
)
from gem_rag.pairs.settings import PairSettings

_TRIAL = 100  # answers after which a model is given up...
_MIN_USABLE = 0.35  # ... if fewer of them are questions
_SHOWN = 3
_Notice = Callable[[str], object]


class UnusableQuestionsError(GemError):
    """The model answers, but not with questions."""


@dataclass(frozen=True)
class _Job:
    """One question to be written."""

    passage: Passage
    kind: str


def write_questions(
    gem: Gem,
    passages: Sequence[Passage],
    settings: PairSettings,
    state: Path,
    progress: bool = False,
    notice: _Notice = lambda line: None,
) -> list[Pair]:
    """Let a model write questions about passages.

    Args:
        gem: The model.
        passages: What they are about.
        settings: How many, of which kinds, how.
        state: A folder of what has been written; a run of the same settings goes on from it.
        progress: Whether to show a progress bar.
        notice: Is told how long it will take.

    Returns:
        A pair for each question that could be read; questions are not filtered.

    Raises:
        UnusableQuestionsError: The model writes nothing usable.
    """
    jobs = _plan(passages, settings)
    if not jobs:
        return []
    written_before = state / f"{_describe(gem, jobs, settings)}.jsonl"
    answers = _read_state(written_before, settings.batch, len(jobs))
    with (
        written_before.open("a", encoding="utf-8") as file,
        progress_bar("writing questions", len(jobs), progress) as advance,
    ):
        advance(len(answers))
        started, before = time.monotonic(), len(answers)
        for batch in _batches(len(answers), len(jobs), settings.batch):
            written = _write(gem, [jobs[i] for i in batch], settings, batch.start)
            file.write("".join(json.dumps(text) + "\n" for text in written))
            file.flush()
            answers += written
            advance(len(written))
            _check_usable(answers, len(jobs), gem)
            if len(answers) - before == len(written):  # the first batch
                seconds = (time.monotonic() - started) / len(written) * (len(jobs) - len(answers))
                notice(f"{len(jobs)} questions, about {max(1, round(seconds / 60))} min")
    read = ((job, read_question(text)) for job, text in zip(jobs, answers, strict=True))
    return [
        Pair(
            question,
            job.passage.chunk,
            job.kind,
            job.passage.source,
            job.passage.section,
            context=job.passage.context,
        )
        for job, question in read
        if question
    ]


def _plan(passages: Sequence[Passage], settings: PairSettings) -> list[_Job]:
    """The questions of all passages; their kinds take turns."""
    jobs = []
    for number, passage in enumerate(passages):
        first = number * settings.questions
        kinds = (
            settings.kinds[(first + i) % len(settings.kinds)] for i in range(settings.questions)
        )
        jobs += [_Job(passage, kind) for kind in dict.fromkeys(kinds)]
    if settings.max_questions is None or len(jobs) <= settings.max_questions:
        return jobs
    chosen = Random(settings.seed).sample(range(len(jobs)), settings.max_questions)
    return [jobs[number] for number in sorted(chosen)]


def _batches(done: int, count: int, size: int) -> Iterator[range]:
    """The batches that are left; each as in an uninterrupted run."""
    for start in range(0, count, size):
        if start >= done:
            yield range(start, min(start + size, count))


def _write(gem: Gem, jobs: Sequence[_Job], settings: PairSettings, number: int) -> list[str]:
    """The model's answers, held to the schema."""
    prompts = [_fitting_prompt(gem, job) for job in jobs]
    generations = gem.generate(
        prompts,
        max_tokens=MAX_TOKENS,
        temperature=settings.temperature,
        seed=settings.seed + number,
        schema=SCHEMA,
    )
    return [generation.text for generation in generations]


def _fitting_prompt(gem: Gem, job: _Job) -> list[int]:
    """The prompt of a question, about as much of the passage as the model's context holds."""
    passage, room = job.passage.chunk, gem.context_length - MAX_TOKENS
    prompt = prompt_for(gem, passage, job.kind)
    while len(prompt) > room and passage:
        passage = passage[: len(passage) // 2]
        prompt = prompt_for(gem, passage, job.kind)
    if not passage:
        raise UnusableQuestionsError(
            f"{gem.name}'s context of {gem.context_length} tokens is too short to ask it for "
            "questions: take another model, or set questions to 0"
        )
    return prompt


def _check_usable(answers: Sequence[str], count: int, gem: Gem) -> None:
    """Raise GemError if the first answers hold no question at all."""
    if len(answers) < min(_TRIAL, count):
        return
    questions = [read_question(text) for text in answers]
    usable = sum(question is not None and is_usable(question) for question in questions)
    if usable < _MIN_USABLE * len(answers):
        samples = ", ".join(repr(text[:80]) for text in answers[:_SHOWN])
        raise UnusableQuestionsError(
            f"{gem.name} writes nothing usable ({usable} of {len(answers)} answers): {samples}; "
            "take a larger model to write questions, or set questions to 0"
        )


def is_usable(question: str) -> bool:
    """Whether a question says something by itself, and not the prompt's words."""
    return says_something(question) and not repeats_prompt(question)


# -- the state of an interrupted run -----------------------------------------------------------


def _describe(gem: Gem, jobs: Sequence[_Job], settings: PairSettings) -> str:
    """16 hexadecimal digits of all that the answers depend on."""
    digest = hashlib.sha256()
    parts = [gem.fingerprint, repr(KINDS), settings.temperature, settings.seed, settings.batch]
    parts += [(job.kind, job.passage.chunk) for job in jobs]
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def _read_state(file: Path, batch: int, count: int) -> list[str]:
    """Answers that have been written, in whole batches."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < count:  # a batch may have been cut off
        whole = whole[: len(whole) - len(whole) % batch]
    write_atomically(file, "".join(whole))
    return [json.loads(line) for line in whole]
