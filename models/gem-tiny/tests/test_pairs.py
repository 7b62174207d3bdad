"""Pairs for GEM and their hard negatives."""

from __future__ import annotations

from dataclasses import replace

from gem_tiny.corpus import Text, cut
from gem_tiny.pairs import asked, mined, summaries, titles
from gem_tiny.question_rows import Row


def text(kind: str, name: str, body: str) -> Text:
    return Text(kind, "a package", "shapes", name, f"# {name}", body, False)  # type: ignore[arg-type]


def test_a_docstring_is_cut_into_summary_and_rest() -> None:
    rest = "Negative sides raise an error, and so do sides without numbers."
    found = cut(f"Compute the area of\na rectangle.\n\n{rest}\n")
    assert found == ("Compute the area of a rectangle.", rest)
    assert cut("Compute the area of a rectangle.\n\nToo short.") is None
    assert cut("Area.\n\n" + "Negative sides raise an error. " * 3) is None


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
    assert list(summaries(docs)) == [("Compute the area of a rectangle.", rest)]
    assert list(titles(docs)) == [("# Shapes", docs[3].text)]


def test_negatives_are_what_bm25_takes_for_the_document_and_say_something_else() -> None:
    pairs = [
        ("Open a window", "A window is opened by its handle, slowly and with care."),
        ("Close a window", "A window is closed by its handle. Locks need a key."),
        ("Wash a window", "A window is opened by its handle, slowly and with great care."),
        ("Feed the cat", "Cats eat in the morning and in the evening."),
    ]
    found = list(mined(pairs))
    assert [(p["query"], p["document"]) for p in found] == pairs
    assert found[0]["negatives"][0] == pairs[1][1]
    assert all(len(p["negatives"]) == 2 for p in found)


def test_questions_have_the_passages_beside_as_negatives() -> None:
    rows = [
        Row("purpose", "What is b?", "b", 2, ("a", "b", "c", "d")),
        Row("purpose", "What is e?", "e", 1, ("e", "f")),
        Row("purpose", "What is g?", "", 0, ("h", "i")),
        Row("purpose", "What is j?", "j", 1, ("j",)),
    ]
    assert list(asked(rows)) == [
        {"query": "What is b?", "document": "b", "negatives": ["a", "c"]},
        {"query": "What is e?", "document": "e", "negatives": ["f", "f"]},
    ]
