"""The closing report of a run, on held-out pairs whose texts are anything but tame."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from markdown_it import MarkdownIt
from recipes import recipe

from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.evaluation.baselines import bm25
from gem_rag.training.corpus import HeldOut
from gem_rag.training.report_retrieval import measure_retrieval
from gem_rag.training.training_report import Cost, make_report

PAIRS = [
    ("what moves water | or\nnot", "a pump moves water\n| a | b |\n|---|---|"),
    ("which lamp \\| is *bright*", "<b>lamp</b> of `light` \\|\\"),
    ("where is \x1b[31mred", "[red](http://red) ~~paint~~ & $x$"),
    ("the", "to be"),
]
ENTRY = {"step": 1, "loss": 1.0, "contrastive": 1.0, "tokens": 9, "places": 10, "seconds": 1.0}


def held_out(others: tuple[str, ...] = (), copies: int = 1) -> HeldOut:
    rows = [
        {"query": f"{query} {number}", "document": f"{document} {number}"}
        for number in range(copies)
        for query, document in PAIRS
    ]
    return HeldOut("mine", "pairs", datasets.Dataset.from_list(rows), others)


@pytest.fixture(scope="module")
def folders(plain_folder: Callable[[str], Path], gem_folder: Any) -> tuple[Any, Any]:
    return open_checkpoint(gem_folder("llama")), open_checkpoint(plain_folder("llama"))


def test_others_stand_in_the_collection(folders: tuple[Any, Any]) -> None:
    others = ("a pump moves oil", "nothing at all", f"{PAIRS[3][1]} 0")
    alone = measure_retrieval(*folders, 1, [held_out()])["mine"]
    among = measure_retrieval(*folders, 1, [held_out(others)])["mine"]
    assert alone.documents == 4
    assert among.documents == 6  # one of the others is a query's own
    assert among.figures["after"].queries == 4
    assert among.figures["after"].mrr <= alone.figures["after"].mrr


def test_documents_that_bm25_does_not_find_gain_nothing_by_their_place(
    folders: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queries' own documents come first in the collection."""
    rows = [{"query": f"query{n}", "document": f"document{n}"} for n in range(3)]
    part = HeldOut("mine", "pairs", datasets.Dataset.from_list(rows), ("one", "other", "third"))
    ranking = np.tile(np.arange(6.0), (3, 1))  # the others are first
    monkeypatch.setattr("gem_rag.training.report_retrieval.similarities", lambda *_: ranking)
    assert not bm25([r["query"] for r in rows], [r["document"] for r in rows]).any()
    figures = measure_retrieval(*folders, 1, [part])["mine"].figures
    assert figures["after and BM25"] == figures["after"]


def test_examples_are_drawn_by_their_words_and_agree_with_the_figures(
    folders: tuple[Any, Any],
) -> None:
    few = measure_retrieval(*folders, 1, [held_out()])["mine"]
    for name in ("before", "after"):
        ranks = [getattr(example, f"rank_{name}") for example in few.examples]
        assert np.mean([1 / rank for rank in ranks]) == pytest.approx(few.figures[name].mrr)
    many = [measure_retrieval(*folders, 1, [held_out(copies=5)])["mine"] for _ in range(2)]
    assert many[0] == many[1]
    drawn = [example.query for example in many[0].examples]
    assert len(set(drawn)) == 10
    assert drawn != [" ".join(query.split()) for query in held_out(copies=5).rows["query"]][:10]


def test_of_documents_that_tie_another_is_shown_than_the_right_one(
    folders: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gem_rag.training.report_retrieval.similarities", lambda *_: np.zeros((4, 4))
    )
    for example in measure_retrieval(*folders, 1, [held_out()])["mine"].examples:
        assert example.rank_before == example.rank_after == 4
        rows = held_out().rows
        own = dict(zip(map(flat, rows["query"]), map(flat, rows["document"]), strict=True))
        assert example.found_after != own[example.query]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_report_shows_any_text_as_it_is(folders: tuple[Any, Any], tmp_path: Path) -> None:
    cost = Cost([ENTRY, {**ENTRY, "step": 2}], 1, 2**20, 5, "a device")
    report = make_report(*folders, recipe(tmp_path), [held_out()], cost, {"data": {}})
    folder = folders[0].path / "report"
    examples = report.examples["mine"]
    written = json.loads((folder / "report.json").read_text())["examples"]["mine"]
    assert [one["query"] for one in written] == [one.query for one in examples]
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "\x1b" not in text
    assert "## 4 queries of held-out mine" in text
    shown = rows_of_tables(text)
    for one in examples:
        cells = [
            one.query, str(one.rank_before), str(one.rank_after), one.found_before, one.found_after
        ]  # fmt: skip
        assert [cell.replace("\x1b", "\\x1b") for cell in cells] in shown
    assert "Training changes the MRR by" in report.summary()


def rows_of_tables(markdown: str) -> list[list[str]]:
    """Texts of the cells, as a reader sees them."""
    rows: list[list[str]] = []
    in_cell = False
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        if in_cell:
            parts = token.children or []
            assert {part.type for part in parts} <= {"text", "text_special"}
            rows[-1].append("".join(part.content for part in parts))
        in_cell = token.type in ("td_open", "th_open")
    return rows
