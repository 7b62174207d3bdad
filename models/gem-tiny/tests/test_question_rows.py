"""Rows of grounded question answering."""

from __future__ import annotations

from collections import Counter

from gem_tiny.question_rows import count_rows, make_question_rows
from gem_tiny.texts import Text


def texts(held: bool = False) -> list[Text]:
    return [
        Text(
            "docstring", "tools", f"tools.part{i // 10}", f"part{i // 10}.load_{word}",
            f"# part{i // 10}.load_{word}(path)",
            f"Load the {word} from a file.\n\nArgs:\n    path: where the {word} lies on disk.\n\n"
            f"Returns:\n    The {word} in the order of the file.\n\nRaises:\n"
            f"    {word.title()}Error: if there is no {word} in the file.\n",
            held,
        )
        for i, word in enumerate(f"{a}{b}" for a in ("tab", "row", "key", "pin", "map", "log")
                                 for b in ("le", "tern", "ring", "bot", "dex", "let"))
    ]  # fmt: skip


def test_rows_answer_from_one_passage_or_not_at_all() -> None:
    rows = list(make_question_rows(texts(), 0, 1000))
    assert len(rows) > 50
    for row in rows:
        assert 1 <= len(row.passages) <= 5
        assert len(set(row.passages)) == len(row.passages)
        holds = [n for n, passage in enumerate(row.passages, 1)
                 if row.answer and row.answer in " ".join(passage.split())]  # fmt: skip
        assert holds == ([row.number] if row.number else [])
        assert bool(row.answer) == bool(row.number)
    assert 0.05 < sum(not row.number for row in rows) / len(rows) < 0.4
    places = Counter(row.number for row in rows if len(row.passages) == 4 and row.number)
    assert set(places) == {1, 2, 3, 4}
    counts = count_rows(rows)
    assert counts["rows"] == len(rows)
    assert set(counts["kinds"]) >= {"purpose", "parameter", "returns", "raises", "how"}


def test_rows_are_a_function_of_the_seed() -> None:
    first, again, other = (list(make_question_rows(texts(), seed, 30)) for seed in (0, 0, 1))
    assert first == again != other
    assert all(len(row.passages) == 4 for row in make_question_rows(texts(), 0, 10, passages=4))


def test_long_texts_are_cut_in_passages_under_their_title() -> None:
    body = "\n\n".join(
        f"Paragraph {i} of the text says a thing of its own here." for i in range(60)
    )
    long = Text("section", "manual", "page", "Part", "Page > Part", body, False)
    rows = [row for seed in range(30) for row in make_question_rows([long, *texts()[:5]], seed, 20)]
    by_content = ("prose", "how", "definition")  # these may show passages without titles
    cut = [p for row in rows if row.kind not in by_content for p in row.passages
           if "Paragraph" in p]  # fmt: skip
    assert cut
    assert all(p.startswith("Page > Part\n") and len(p) < 900 for p in cut)


def test_questions_about_what_is_said_may_show_passages_without_titles() -> None:
    rows = [row for seed in range(30) for row in make_question_rows(texts(), seed, 20)]
    titles = {text.title for text in texts()}
    untitled = [row for row in rows if not any(p.split("\n")[0] in titles for p in row.passages)]
    assert untitled
    assert {row.kind for row in untitled} <= {"prose", "how", "definition"}
    for row in untitled:
        if row.number:
            assert row.answer in " ".join(row.passages[row.number - 1].split())
