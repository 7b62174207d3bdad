"""Questions to an index: was the right passage found, is the answer right, are its words and its
citation where it says.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gem_rag._utils.progress import progress_bar
from gem_rag.errors import InputError
from gem_rag.evaluation.judging import judge, plain
from gem_rag.evaluation.scores import Record, Score, this_machine
from gem_rag.evaluation.significance import interval
from gem_rag.rag.answer import Answer
from gem_rag.rag.index import Index


@dataclass(frozen=True)
class Question:
    """A question and what is known about its answer.

    answer: words that the answer must hold; empty where the documents do not answer.
    sources: names of the documents that answer, or the ends of their paths; empty if any passage
        that holds the answer will do.
    """

    question: str
    answer: str
    sources: tuple[str, ...] = ()


def read_questions(file: Path) -> list[Question]:
    """Questions of a JSONL file: "question", "answer" (null or missing where nothing answers) and
    "source" (a name or a list of names, if it matters).

    Raises InputError naming the line for anything else.
    """
    if not file.is_file():
        raise InputError(f"there is no file {file}: give JSON lines with question and answer")
    found = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                found.append(_question(file, number, line))
    if not found:
        raise InputError(f"{file} holds no questions")
    return found


def _question(file: Path, number: int, line: str) -> Question:
    try:
        row = json.loads(line)
        sources = row.get("source") or ()
        sources = (sources,) if isinstance(sources, str) else tuple(sources)
        question, answer = row["question"], row.get("answer") or ""
        if not (isinstance(question, str) and question.strip() and isinstance(answer, str)):
            raise TypeError
        if not all(isinstance(source, str) for source in sources):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f'{file}, line {number}: this is not {{"question": ..., "answer": ..., "source": ...}}'
        ) from None
    return Question(question, answer, sources)


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and what is right about it, by metric."""

    question: Question
    answer: Answer
    values: dict[str, float]


def ask_all(
    index: Index, questions: Sequence[Question], k: int = 5, *, progress: bool = False,
    **sampling: Any,
) -> list[Asked]:  # fmt: skip
    """Every question's answer, judged.

    Raises InputError if a question names a source that the index does not have.
    """
    known = index.sources
    questions = [_with_sources(question, known) for question in questions]
    found = []
    with progress_bar("asking", len(questions), progress) as advance:
        for question in questions:
            answer = index.ask(question.question, k, **sampling)
            found.append(Asked(question, answer, judged(question, answer)))
            advance(1)
    return found


def _with_sources(question: Question, known: Sequence[str]) -> Question:
    """A question whose sources are the index's names, of which it may give the end of the path."""
    found = []
    for source in question.sources:
        named = [name for name in known if f"/{name}".endswith(f"/{source}")]
        if not named:
            raise InputError(
                f"the index has no document {source!r}, which is to answer "
                f"{question.question[:60]!r}: index it, or correct the question's source"
            )
        found += named
    return dataclasses.replace(question, sources=tuple(found))


def judged(question: Question, answer: Answer) -> dict[str, float]:
    """Values of the metrics that the question has: 0 or 1, and seconds.

    Answerable questions have "hit" (a right passage was read), "match" (the answer holds the
    reference), "supported" (and its words stand in a right passage), "citation" (the first
    citation is of a right one); what is answered has "verbatim"; unanswerable ones have
    "refusal".
    """
    right = []
    if question.answer:
        right = [number for number, hit in enumerate(answer.hits, start=1)
                 if (not question.sources or hit.chunk.source in question.sources)
                 and plain(question.answer) in plain(hit.chunk.passage)]  # fmt: skip
    found = judge(answer, question.answer, right)
    values = {"seconds": sum(answer.timings.values())}
    if not found.refused:
        values["verbatim"] = float(found.verbatim)
    if question.answer:
        return values | {
            "hit": float(bool(right)),
            "match": float(found.matched),
            "supported": float(found.supported),
            "citation": float(found.cited),
        }
    return values | {"refusal": float(found.refused)}


def evaluate_answers(
    index: Index, questions: Sequence[Question], k: int = 5, *, task: str = "questions",
    name: str | None = None, progress: bool = False, **sampling: Any,
) -> tuple[Record, list[Asked]]:  # fmt: skip
    """Scores of all metrics with bootstrap intervals, and the answers."""
    asked = ask_all(index, questions, k, progress=progress, **sampling)
    own = name or Path(index.gem.name).name
    scores = []
    for metric in ("hit", "match", "supported", "citation", "verbatim", "refusal", "seconds"):
        items = tuple(a.values[metric] for a in asked if metric in a.values)
        if items:
            low, high = interval(items)
            scores.append(
                Score("answers", task, metric, own, float(np.mean(items)), items, low, high)
            )
    timings = {part: sum(a.answer.timings.get(part, 0.0) for a in asked)
               for part in ("search", "generate")}  # fmt: skip
    settings = {f"answers {task}": {"questions": len(questions), "k": k, **sampling}}
    return Record(own, tuple(scores), (), settings, timings, this_machine()), asked


def save_answers(file: Path, asked: Sequence[Asked]) -> None:
    """JSON lines: every question, its answer, the passages read and what is right about it."""
    with file.open("w", encoding="utf-8") as lines:
        for item in asked:
            row = {
                "question": item.question.question,
                "reference": item.question.answer,
                "answer": item.answer.text,
                "citations": [[c.number, c.source, *c.span] for c in item.answer.citations],
                "read": [hit.chunk.source for hit in item.answer.hits],
                **item.values,
            }
            lines.write(json.dumps(row) + "\n")
