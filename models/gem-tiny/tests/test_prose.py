"""Questions made of sentences."""

from __future__ import annotations

import pytest
from gem_tiny.prose import derive_questions
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("Lambda forms (or lambdas) are used to create functions.", "What is a lambda form?"),
        ('The "try" statement specifies handlers.', 'What does the "try" statement do?'),
        ("Default values are evaluated from left to right.", "How are default values evaluated?"),
        ("The cache is cleared when the process ends.", "When is the cache cleared?"),
        ("To open a port, call listen().", "How do I open a port?"),
        ("If you want to skip your tests, pass -k.", "How can I skip my tests?"),
        ("Use --jobs 2 to run tests in parallel.", "What should I use to run tests in parallel?"),
        ("If the file is missing, an error is raised.", "What happens if the file is missing?"),
        ("The GNU linker is a program that joins objects.", "What is the GNU linker?"),
        ("XML files must begin with a declaration.", "Must XML files begin with a declaration?"),
        ("The sort is stable.", "Is the sort stable?"),
        ("CMake provides a test driver.", "What does CMake provide?"),
    ],
)
def test_a_sentence_answers(sentence: str, question: str) -> None:
    assert question in set(derive_questions(sentence))


@pytest.mark.parametrize(
    "sentence",
    [
        "This is used to create functions.",
        "It returns a list.",
        "The result is a list.",
        "To do that, call listen().",
        "Return the name of the file.",
        "Parameters",
    ],
)
def test_what_says_nothing_by_itself_asks_nothing(sentence: str) -> None:
    assert not list(derive_questions(sentence))


@given(st.text(max_size=200))
def test_any_text_gives_short_questions_or_none(text: str) -> None:
    for question in derive_questions(text):
        assert 1 <= len(question.split()) <= 16
