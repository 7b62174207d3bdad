"""Stage `measure`: figures on held-out texts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gem_rag._utils.files import write_atomically
from gem_tiny.files import read_jsonl
from gem_tiny.stages.options import WORK, Work
from gem_tiny.stages.work_folder import load_question_rows, require


def measure(
    model: Annotated[str, typer.Option(help="the checkpoint")] = "gem-tiny",
    work: Work = WORK,
    base: Annotated[Path | None, typer.Option(help="language model it was made from")] = None,
    beside: Annotated[str | None, typer.Option(help="sentence-transformers folder")] = None,
    beside_lm: Annotated[Path | None, typer.Option(help="another language model")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for figures and answers")] = None,
    count: Annotated[int, typer.Option(help="the most of everything")] = 1500,
) -> None:
    """Measure on held-out texts; write figures.json and every answer."""
    from gem_tiny.measurement import HeldOutData, measure_all
    from gem_tiny.texts import load_texts

    texts = [text for text in load_texts(work / "corpus.jsonl") if text.held_out]
    pairs = read_jsonl(require(work / "pairs" / "held-out-summaries.jsonl", "pairs"))
    summaries = [(pair["query"], pair["document"]) for pair in pairs]
    data = HeldOutData(texts, summaries, load_question_rows(work, "held-out-questions"))
    out = out or work / "measured"
    figures = measure_all(
        model, data, out, base=base, beside=beside, beside_lm=beside_lm, limit=count
    )
    text = json.dumps(figures, indent=2, default=asdict) + "\n"
    write_atomically(out / "figures.json", text)
    print(text)
