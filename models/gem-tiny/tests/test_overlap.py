"""Texts that repeat others."""

from __future__ import annotations

from gem_tiny.overlap import Novelty, Quotes, runs

KEPT = (
    "Return the number of open files that this process holds, counted by the system itself and "
    "not by the interpreter."
)


def test_quotes_are_found_whatever_lies_between_words() -> None:
    quotes = Quotes([KEPT])
    assert quotes.stand_in(f"Notes\n-----\n    {KEPT.replace(' ', chr(10) + '    ')}\nAnd more.")
    assert quotes.stand_in(
        "It says: return the number of OPEN files that this process holds, counted by"
    )
    assert not quotes.stand_in("Return the number of open files.")
    assert not quotes.stand_in("The interpreter counts files by itself and holds this process.")


def test_texts_of_a_few_words_are_no_quotes() -> None:
    assert not Quotes(["Return a copy of the array."]).stand_in("Return a copy of the array.")


def test_what_was_said_adds_nothing() -> None:
    novelty = Novelty(every=1)
    assert novelty.adds(KEPT)
    assert not novelty.adds(f"{KEPT} Always.")
    assert novelty.adds(f"{KEPT} " + " ".join(f"word{i}" for i in range(30)))


def test_runs_are_the_same_in_every_process() -> None:
    assert runs("one two three four five") == {1354651064}
