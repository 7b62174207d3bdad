"""Pairs of a docstring's summary and the rest of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gem_tiny.docstring_pairs import (
    DocstringPair,
    extract_docstring_pairs,
    load_docstring_pairs,
    split_summary,
)
from gem_tiny.texts import is_held_out, read_docstrings


def test_a_docstring_is_split_into_summary_and_rest() -> None:
    rest = "Negative sides raise an error, and so do sides without numbers."
    parts = split_summary(f"Compute the area of\na rectangle.\n\n{rest}\n")
    assert parts == ("Compute the area of a rectangle.", rest)
    assert split_summary("Compute the area of a rectangle.\n\nToo short.") is None
    assert split_summary("Area.\n\n" + "Negative sides raise an error. " * 3) is None


@pytest.mark.usefixtures("without_stdlib")
def test_pairs_of_packages(package: Path) -> None:
    pairs = list(extract_docstring_pairs(read_docstrings([package])))
    assert len(pairs) == 61  # the text that stands everywhere once
    assert pairs[0] == DocstringPair(
        "tools.part0",
        "act0",
        "(x)",
        "Do the thing of number 0.",
        "It takes x and returns the 0th of many things there are.",
    )
    held_out = {pair.module for pair in pairs if is_held_out(pair.module)}
    assert held_out


@pytest.mark.usefixtures("without_stdlib")
def test_pairs_are_read_once(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "work" / "pairs.jsonl"
    first = load_docstring_pairs(cache, package)
    assert len(cache.read_text().splitlines()) == len(first) == 61
    assert json.loads(cache.read_text().splitlines()[0])["module"] == "tools.part0"
    assert load_docstring_pairs(cache, tmp_path / "nowhere") == first
