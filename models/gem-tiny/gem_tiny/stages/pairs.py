"""Stage `pairs`: training pairs with hard negatives, and held-out pairs."""

from __future__ import annotations

from gem_tiny.stages.options import WORK, Work
from gem_tiny.stages.work_folder import load_question_rows


def pairs(work: Work = WORK) -> None:
    """Write pairs with hard negatives, and held-out pairs for evaluation."""
    from gem_tiny.files import write_jsonl
    from gem_tiny.retrieval_pairs import (
        extract_summary_pairs,
        extract_title_pairs,
        make_question_pairs,
        mine_hard_negatives,
    )
    from gem_tiny.texts import load_texts

    folder = work / "pairs"
    texts = load_texts(work / "corpus.jsonl")
    training = [text for text in texts if not text.held_out]
    for name, extracted in (
        ("summaries", extract_summary_pairs(training)),
        ("titles", extract_title_pairs(training)),
    ):
        write_jsonl(folder / f"{name}.jsonl", mine_hard_negatives(list(extracted)))
    for name, source in (("asked", "questions"), ("held-out-asked", "held-out-questions")):
        rows = load_question_rows(work, source)
        write_jsonl(folder / f"{name}.jsonl", make_question_pairs(rows))
    held_out = extract_summary_pairs(text for text in texts if text.held_out)
    write_jsonl(
        folder / "held-out-summaries.jsonl",
        ({"query": query, "document": document} for query, document in held_out),
    )
