"""`gem-rag make-pairs`: training pairs from documents."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from gem_rag.cli.common import (
    JsonOption,
    load_model,
    print_notice,
    print_result,
    require_extra,
    shows_progress,
)
from gem_rag.errors import InputError


def make_pairs(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Writes questions; finds passages if trained."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines file to write.")],
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders.")] = None,
    refresh: Annotated[
        Path | None, typer.Option(help="Instead, mine the negatives of this file again.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(help="Questions per passage; 0 for pairs from structure alone.")
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(help="Kinds of questions, separated by commas; default: all.")
    ] = None,
    max_questions: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of questions in total.")
    ] = None,
    passage_tokens: Annotated[int | None, typer.Option(help="Maximum tokens in a passage.")] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum tokens of a passage and its context; 0: none."),
    ] = None,
    round_trip: Annotated[
        int | None, typer.Option(help="A question must find its passage among this many results.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="auto, bm25, model or both.")] = None,
    negatives: Annotated[int | None, typer.Option(help="Hard negatives per query.")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of sections held out for evaluation.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make training pairs from documents: queries, passages that answer them, hard negatives."""
    require_extra("train", "bm25s", "pydantic")
    from gem_rag.pairs import make
    from gem_rag.pairs.settings import PairSettings

    if bool(paths) == (refresh is not None):
        raise InputError("make-pairs needs either files and folders, or --refresh PAIRS")
    given: dict[str, Any] = {
        "questions": questions,
        "kinds": None if kinds is None else tuple(kind.strip() for kind in kinds.split(",")),
        "max_questions": max_questions,
        "passage_tokens": passage_tokens,
        "context_tokens": context_tokens,
        "round_trip": round_trip,
        "search": search,
        "negatives": negatives,
        "held_out": held_out,
        "seed": seed,
    }
    settings = PairSettings(**{name: value for name, value in given.items() if value is not None})
    progress = shows_progress(as_json)
    with load_model(model, engine) as gem:
        if refresh is not None:
            made = make.refresh_negatives(refresh, gem, out, settings, progress=progress)
        else:
            made = make.make_pairs(
                paths or [], gem, out, settings, progress=progress, notice=print_notice
            )
    print_result(dataclasses.asdict(made), as_json, made.summary())
