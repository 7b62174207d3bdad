"""Question rows and the facts they are made of."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import pytest
from gem_tiny.corpus import Text
from gem_tiny.facts import Fact, facts, first_sentence, sentences, wording
from gem_tiny.prompts import ANSWER_PROMPT, completion, prompt
from gem_tiny.question_rows import count_rows, make_rows
from hypothesis import given
from hypothesis import strategies as st

from gem_rag.rag.answer import REFUSAL, _prompt

GOOGLE = """Read a table from a file.

Rows that are damaged are left out unless strict reading was asked for by the caller.

Args:
    path (str): Where the file lies on the disk.

Returns:
    The rows of the table in order.

Raises:
    ValueError: If the file holds no table.

>>> table.read("a.csv")
"""
NUMPY = """Read a table from a file.

Parameters
----------
path : str
    Where the file lies on the disk.

Returns
-------
list
    The rows of the table in order.

Raises
------
ValueError
    If the file holds no table.
"""
SPHINX = """Read a table from a file.

:param str path: Where the file lies on the disk.
:returns: The rows of the table in order.
:raises ValueError: If the file holds no table.
"""


def docstring(text: str, name: str = "table.read", signature: str = "(path, size=5)") -> Text:
    title = f"# {name}{signature}"
    return Text("docstring", "tools", "tools.table", name, title, text, False)


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, SPHINX])
def test_facts_of_docstrings(text: str) -> None:
    found = set(facts(docstring(text), Counter(), Random(0)))
    assert found >= {
        Fact("purpose", "", "Read a table from a file."),
        Fact("how", "read a table from a file", "Read a table from a file."),
        Fact("how", "read a table", "Read a table from a file."),
        Fact("which", "read a table from a file", "table.read"),
        Fact("parameter", "path", "Where the file lies on the disk."),
        Fact("type", "path", "str"),
        Fact("default", "size", "5"),
        Fact("returns", "", "The rows of the table in order."),
        Fact("error", "", "ValueError"),
        Fact("raises", "ValueError", "If the file holds no table."),
    }


def test_facts_of_examples_and_details() -> None:
    found = facts(docstring(GOOGLE), Counter(), Random(0))
    assert Fact("example", "", 'table.read("a.csv")') in found
    (detail,) = (fact for fact in found if fact.kind == "detail")
    assert detail.answer.startswith("Rows that are damaged")
    assert detail.item in detail.answer


def test_facts_of_sections() -> None:
    text = Text(
        "section", "manual", "page.html", "Options", "VACUUM > Options",
        "The options say what is done and how.\n\nFULL\n    Selects a full vacuum of the table.",
        False,
    )  # fmt: skip
    found = facts(text, Counter(), Random(0))
    assert Fact("heading", "", "The options say what is done and how.") in found
    assert Fact("definition", "FULL", "Selects a full vacuum of the table.") in found


def test_wordings_are_several() -> None:
    fact = Fact("parameter", "path", "Where the file lies.")
    asked = {wording(fact, "table.read", Random(i)) for i in range(40)}
    assert len(asked) >= 7
    assert all("path" in question and "table.read" in question for question in asked)


def test_first_sentences() -> None:
    assert first_sentence("- It opens\n  a file. It reads.\n") == "It opens a file."
    assert first_sentence("As follows:") == first_sentence("  ") == ""
    assert first_sentence("word " * 60) == ""


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
    rows = list(make_rows(texts(), 0, 1000))
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
    first, again, other = (list(make_rows(texts(), seed, 30)) for seed in (0, 0, 1))
    assert first == again != other
    assert all(len(row.passages) == 4 for row in make_rows(texts(), 0, 10, passages=4))


def test_long_texts_are_cut_in_passages_under_their_title() -> None:
    body = "\n\n".join(
        f"Paragraph {i} of the text says a thing of its own here." for i in range(60)
    )
    long = Text("section", "manual", "page", "Part", "Page > Part", body, False)
    rows = [row for seed in range(30) for row in make_rows([long, *texts()[:5]], seed, 20)]
    by_content = ("prose", "how", "definition")  # these may show passages without titles
    cut = [p for row in rows if row.kind not in by_content for p in row.passages
           if "Paragraph" in p]  # fmt: skip
    assert cut
    assert all(p.startswith("Page > Part\n") and len(p) < 900 for p in cut)


def test_questions_about_what_is_said_may_show_passages_without_titles() -> None:
    rows = [row for seed in range(30) for row in make_rows(texts(), seed, 20)]
    titles = {text.title for text in texts()}
    untitled = [row for row in rows if not any(p.split("\n")[0] in titles for p in row.passages)]
    assert untitled
    assert {row.kind for row in untitled} <= {"prose", "how", "definition"}
    for row in untitled:
        if row.number:
            assert row.answer in " ".join(row.passages[row.number - 1].split())


def test_prompts_are_what_answers_are_asked_with() -> None:
    class Config:
        answer_prompt = ANSWER_PROMPT

    class Gem:
        config = Config

        def encode(self, text: str) -> str:
            return text

    passages = ["# a.b(x)\nUse {x}.", "Page > Part\nText."]
    asked = _prompt(Gem(), "What?", passages)  # type: ignore[arg-type]
    assert asked == prompt(passages, "What?")
    assert completion("Use {x}.", 1) == " Use {x}. [1]"
    assert completion("", 0) == f" {REFUSAL}"


@given(st.text("Ab .!?\n(", max_size=60))
def test_sentences_are_in_order_and_hold_all_words_of_three_or_more(text: str) -> None:
    spans = sentences(text)
    assert all(0 <= start <= stop <= len(text) for start, stop in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    if spans != [(0, len(text))]:
        assert all(text[a:b] == text[a:b].strip() for a, b in spans)
