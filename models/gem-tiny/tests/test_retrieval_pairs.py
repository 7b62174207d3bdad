"""Pairs for GEM and their hard negatives."""

from __future__ import annotations

from dataclasses import replace

from gem_tiny.question_rows import QuestionRow
from gem_tiny.retrieval_pairs import (
    extract_summary_pairs,
    extract_title_pairs,
    make_question_pairs,
    mine_hard_negatives,
)
from gem_tiny.texts import Text


def text(kind: str, name: str, body: str) -> Text:
    return Text(kind, "a package", "shapes", name, f"# {name}", body, False)  # type: ignore[arg-type]


def test_repeated_summaries_and_rests_are_left_out() -> None:
    rest = "Negative sides raise an error, and so do sides that are no numbers."
    docs = [
        text("docstring", "area", f"Compute the area of a rectangle.\n\n{rest}"),
        text("docstring", "again", f"Compute the area of a rectangle.\n\nOnce more: {rest}"),
        text("docstring", "size", f"Compute the size of a rectangle.\n\n{rest}"),
        text("section", "Shapes", f"All shapes have an area.\n{rest}"),
        text("section", "Nothing", "1 2 3"),
        replace(
            text("section", "", "A page may begin without a title, and nobody asks for it."),
            title="",
        ),
    ]
    assert list(extract_summary_pairs(docs)) == [("Compute the area of a rectangle.", rest)]
    assert list(extract_title_pairs(docs)) == [("# Shapes", docs[3].text)]


def test_negatives_are_what_bm25_takes_for_the_document_and_say_something_else() -> None:
    pairs = [
        ("Open a window", "A window is opened by its handle, slowly and with care."),
        ("Close a window", "A window is closed by its handle. Locks need a key."),
        ("Wash a window", "A window is opened by its handle, slowly and with great care."),
        ("Feed the cat", "Cats eat in the morning and in the evening."),
    ]
    found = list(mine_hard_negatives(pairs))
    assert [(p["query"], p["document"]) for p in found] == pairs
    assert found[0]["negatives"][0] == pairs[1][1]
    assert all(len(p["negatives"]) == 2 for p in found)


def test_questions_have_the_passages_beside_as_negatives() -> None:
    rows = [
        QuestionRow("purpose", "What is b?", "b", 2, ("a", "b", "c", "d")),
        QuestionRow("purpose", "What is e?", "e", 1, ("e", "f")),
        QuestionRow("purpose", "What is g?", "", 0, ("h", "i")),
        QuestionRow("purpose", "What is j?", "j", 1, ("j",)),
    ]
    assert list(make_question_pairs(rows)) == [
        {"query": "What is b?", "document": "b", "negatives": ["a", "c"]},
        {"query": "What is e?", "document": "e", "negatives": ["f", "f"]},
    ]
