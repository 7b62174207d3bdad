"""Answers to questions in a person's own words, by model and style.

    python benchmarks/answers.py --questions FILE=FOLDER ... [--model gem-tiny] ...
        [--style STYLE] ... [--work FOLDER]

The questions of a file (`gem-rag eval rag` reads the same) are about the documents in a folder.
Counted are: whether a right document comes first, and is among the passages read; whether the
answer holds the words that it should; whether what it cites first is a right document; both; and
how many of the questions that nothing answers are refused. One line is recorded for each model,
file and style. Indexes are kept in the folder --work, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from corpora import split
from measuring import record

import gem_rag
from gem_rag import Index
from gem_rag.evaluation.rag_questions import Asked, ask_all, read_questions

_PASSAGES = 5


def main(
    questions: Annotated[list[str], typer.Option(help="FILE=FOLDER")],
    model: Annotated[list[str], typer.Option(help="what to measure")] = ["gem-tiny"],  # noqa: B006
    style: Annotated[list[str], typer.Option(help="of answers; default the model's own")] = [],  # noqa: B006
    work: Annotated[Path | None, typer.Option(help="where to keep indexes")] = None,
) -> None:
    """Measure and record every model."""
    for name in model:
        measure(name, questions, style, work)


def measure(name: str, questions: list[str], styles: list[str], work: Path | None) -> None:
    """Record a model's answers to each FILE=FOLDER of questions in each style."""
    for file, folder in split(questions):
        _measure(name, Path(file), Path(folder), styles, work)


def _measure(name: str, file: Path, documents: Path, styles: list[str], work: Path | None) -> None:
    case = f"{Path(name).name}, {file.stem}"
    with TemporaryDirectory() as folder, gem_rag.load(name) as gem:
        index = Index.open((work or Path(folder)) / case, gem)
        index.sync([documents])
        for style in styles or [gem.config.answer_style]:
            asked = ask_all(index, read_questions(file), _PASSAGES, style=style)
            record("answers", {"row": f"{case}: {style}", "k": _PASSAGES, **_judged(asked)})


def _judged(asked: Sequence[Asked]) -> dict[str, Any]:
    answerable = [one for one in asked if one.question.answer]
    refused = [one.values["refusal"] for one in asked if not one.question.answer]
    share = partial(_share, answerable)
    return {
        "first": share(lambda one: _ranks(one)[:1] == [True]),
        "among five": share(lambda one: any(_ranks(one))),
        "right": share(lambda one: one.values["match"] > 0),
        "cited": share(_is_cited),
        "right and cited": share(lambda one: one.values["match"] > 0 and _is_cited(one)),
        "rightly refused": f"{sum(refused):.0f} of {len(refused)}",
    }


def _is_cited(one: Asked) -> bool:
    """Whether the first citation is of a document that answers."""
    return any(c.source in one.question.sources for c in one.answer.citations[:1])


def _ranks(one: Asked) -> list[bool]:
    """Whether each passage that was read is of a document that answers."""
    return [hit.chunk.source in one.question.sources for hit in one.answer.hits]


def _share(asked: Sequence[Asked], holds: Callable[[Asked], bool]) -> str:
    return f"{sum(map(holds, asked))} of {len(asked)}"


if __name__ == "__main__":
    typer.run(main)
