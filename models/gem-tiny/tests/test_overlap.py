"""Texts that repeat others."""

from __future__ import annotations

from gem_tiny.overlap import NoveltyFilter, QuoteDetector, hash_shingles

KEPT = (
    "Return the number of open files that this process holds, counted by the system itself and "
    "not by the interpreter."
)


def test_quotes_are_found_whatever_lies_between_words() -> None:
    quotes = QuoteDetector([KEPT])
    assert quotes.matches(f"Notes\n-----\n    {KEPT.replace(' ', chr(10) + '    ')}\nAnd more.")
    assert quotes.matches(
        "It says: return the number of OPEN files that this process holds, counted by"
    )
    assert not quotes.matches("Return the number of open files.")
    assert not quotes.matches("The interpreter counts files by itself and holds this process.")


def test_texts_of_a_few_words_are_no_quotes() -> None:
    assert not QuoteDetector(["Return a copy of the array."]).matches("Return a copy of the array.")


def test_what_was_said_adds_nothing() -> None:
    novelty = NoveltyFilter(every=1)
    assert novelty.add(KEPT)
    assert not novelty.add(f"{KEPT} Always.")
    assert novelty.add(f"{KEPT} " + " ".join(f"word{i}" for i in range(30)))


def test_runs_are_the_same_in_every_process() -> None:
    assert hash_shingles("one two three four five") == {1354651064}
