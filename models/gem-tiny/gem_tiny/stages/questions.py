"""Stage `questions`: rows of grounded question answering, for training and for evaluation."""

from __future__ import annotations

from dataclasses import asdict

from gem_tiny.stages.options import WORK, Seed, Work
from gem_tiny.stages.work_folder import show


def questions(
    work: Work = WORK, most: int = 120_000, held_out_rows: int = 1000, seed: Seed = 0
) -> None:
    """Write question rows, and held-out ones of four passages each."""
    from gem_tiny.files import write_jsonl
    from gem_tiny.question_rows import count_rows, make_question_rows
    from gem_tiny.texts import load_texts

    texts = load_texts(work / "corpus.jsonl")
    for name, held_out, limit, passages in (
        ("questions", False, most, None),
        ("held-out-questions", True, held_out_rows, 4),
    ):
        split = [text for text in texts if text.held_out == held_out]
        rows = list(make_question_rows(split, seed, limit, passages))
        write_jsonl(work / f"{name}.jsonl", map(asdict, rows))
        show({name: count_rows(rows)})
