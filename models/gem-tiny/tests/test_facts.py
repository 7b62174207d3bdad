"""Facts of texts, and the questions that ask for them."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import pytest
from gem_tiny.facts import (
    Fact,
    extract_facts,
    extract_first_sentence,
    find_sentences,
    word_question,
)
from gem_tiny.texts import Text
from hypothesis import given
from hypothesis import strategies as st

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
    found = set(extract_facts(docstring(text), Counter(), Random(0)))
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
    found = extract_facts(docstring(GOOGLE), Counter(), Random(0))
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
    found = extract_facts(text, Counter(), Random(0))
    assert Fact("heading", "", "The options say what is done and how.") in found
    assert Fact("definition", "FULL", "Selects a full vacuum of the table.") in found


def test_wordings_are_several() -> None:
    fact = Fact("parameter", "path", "Where the file lies.")
    asked = {word_question(fact, "table.read", Random(i)) for i in range(40)}
    assert len(asked) >= 7
    assert all("path" in question and "table.read" in question for question in asked)


def test_first_sentences() -> None:
    assert extract_first_sentence("- It opens\n  a file. It reads.\n") == "It opens a file."
    assert extract_first_sentence("As follows:") == extract_first_sentence("  ") == ""
    assert extract_first_sentence("word " * 60) == ""


@given(st.text("Ab .!?\n(", max_size=60))
def test_sentences_are_in_order_and_hold_all_words_of_three_or_more(text: str) -> None:
    spans = find_sentences(text)
    assert all(0 <= start <= stop <= len(text) for start, stop in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    if spans != [(0, len(text))]:
        assert all(text[a:b] == text[a:b].strip() for a, b in spans)
