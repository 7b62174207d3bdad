"""Answers and conversations that go on from what was read before, in memory or beside an index."""

from __future__ import annotations

import argparse
import asyncio
import collections
import decimal
import functools
import inspect
import itertools
import logging
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import textwrap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGem
from typer.testing import CliRunner

import gem_rag
from gem_rag import Conversation, Document, Index, InputError
from gem_rag.cli.app import app
from gem_rag.model import Gem
from gem_rag.rag.asked import AskedCounts
from gem_rag.rag.prefill import FOLDER

TOPICS = {
    "lists": "list append extend insert remove pop sort reverse",
    "files": "file open read write close line buffer encoding",
    "loops": "loop for while break continue else range iterate",
}


def text_of(topic: str, words: int = 75) -> str:
    """A passage of one topic, long enough to be kept."""
    own = TOPICS[topic].split()
    return " ".join(f"{own[n % len(own)]} item {n}" for n in range(words // 3)) + "."


@pytest.fixture(scope="module")
def tiny() -> Iterator[Gem]:
    with gem_rag.load("gem-tiny") as gem:
        yield gem


@pytest.fixture(scope="module")
def plain() -> Iterator[Gem]:
    """Without a prefix cache."""
    with gem_rag.load("gem-tiny", prefix_cache_bytes=0) as gem:
        yield gem


@pytest.fixture
def index(tiny: Gem, tmp_path: Path) -> Index:
    tiny._engine._prefixes.store.clear()
    tiny._engine._prefixes.store._files.clear()  # of other tests
    made = Index.open(tmp_path / "index", tiny)
    made.sync([Document(topic, text_of(topic)) for topic in TOPICS])
    return made


def without(index: Index, plain: Gem) -> Index:
    """The same index with a model that reuses nothing."""
    return Index.open(index.folder, plain)


def test_a_second_question_about_a_passage_reuses_it(index: Index, plain: Gem) -> None:
    for number, question in enumerate(("append insert pop", "sort reverse list")):
        answer = index.ask(question, 1, style="free", max_tokens=8)
        assert answer.hits[0].chunk.source == "lists"
        wanted = without(index, plain).ask(question, 1, style="free", max_tokens=8)
        assert answer.text == wanted.text
        assert wanted.usage["reused"] == 0
        passage = len(index.gem.answer_prefix(answer.hits[0].chunk.passage))
        reused = answer.usage["reused"]
        assert reused == 0 if not number else passage - 2 <= reused < answer.usage["prompt"]


def test_the_best_passage_stands_first_and_what_follows_may_differ(index: Index) -> None:
    index.ask("append insert pop", 1, style="free", max_tokens=1)
    answer = index.ask("append insert pop", 3, style="free", margin=2.0, max_tokens=1)
    assert len(answer.hits) == 3
    passage = len(index.gem.answer_prefix(answer.hits[0].chunk.passage))
    assert passage - 2 <= answer.usage["reused"] <= passage + 2


def test_five_turns_of_a_conversation(index: Index, plain: Gem) -> None:
    """Turns about one passage reuse it; one about another passage reads that."""
    questions = ["append insert pop", "sort reverse list", "file open read", "extend list",
                 "file close buffer"]  # fmt: skip
    conversation = Conversation(index, 1, style="free", max_tokens=6)
    other = Conversation(without(index, plain), 1, style="free", max_tokens=6)
    shares = []
    for question in questions:
        turn, wanted = conversation.ask(question), other.ask(question)
        assert turn.text == wanted.text
        usage = turn.answer.usage
        shares.append(usage["reused"] / usage["prompt"])
        assert wanted.answer.usage["reused"] == 0
    assert [share > 0.8 for share in shares] == [False, True, False, True, True]


def docstrings() -> list[Document]:
    """Long ones of the standard library's functions and classes."""
    modules = (argparse, asyncio, collections, decimal, functools, itertools, logging, os, pathlib,
               random, re, shutil, statistics, subprocess, textwrap, threading)  # fmt: skip
    found = {}
    for module in modules:
        for name, value in inspect.getmembers(module):
            text = inspect.getdoc(value) or ""
            if not name.startswith("_") and len(text) > 400:
                found[text[:100]] = Document(f"{module.__name__}.{name}", text[:700])
    return list(found.values())


@pytest.mark.slow
def test_two_hundred_questions_are_answered_alike(tiny: Gem, plain: Gem, tmp_path: Path) -> None:
    """Half of them freely and half by quotes; most go on from what is kept, token for token."""
    index = Index.open(tmp_path / "index", tiny)
    index.sync(docstrings())
    index.keep_prefill(len(index.sources))
    asked = reused = 0
    for number in range(200):
        text = index.document(index.sources[number % len(index.sources)]).text.split()
        start = 5 * (number // len(index.sources))
        question = f"What is {' '.join(text[start : start + 6])}?"
        style = "free" if number % 2 else "quote"
        answers = [
            one.ask(question, 2, style=style, max_tokens=16)
            for one in (index, without(index, plain))
        ]
        assert answers[0].text == answers[1].text, question
        assert answers[0].citations == answers[1].citations
        asked += 1
        reused += answers[0].usage.get("reused", 0) > 0
    assert asked == 200
    assert reused > 150


# -- beside an index -----------------------------------------------------------------------------


def files(index: Index) -> set[str]:
    return {path.name for path in (index.folder / FOLDER).glob("*.safetensors")}


def first_answer(index: Index, question: str) -> Any:
    """An answer of a model that has read nothing yet."""
    index.gem._engine._prefixes.store.clear()
    return index.ask(question, 1, style="free", max_tokens=8)


def test_kept_documents_are_those_asked_most(index: Index) -> None:
    assert index.keep_prefill(1).documents == ["files"]  # the first, before there are counts
    for _ in range(2):
        index.ask("loop while break", 1, style="quote", max_tokens=4)
    index.ask("append insert pop", 1, style="quote", max_tokens=4)
    kept = index.keep_prefill(2)
    assert kept.documents == ["loops", "lists"]
    assert (kept.chunks, kept.kept, len(files(index))) == (2, 2, 2)
    size = sum(path.stat().st_size for path in (index.folder / FOLDER).glob("*.safetensors"))
    assert kept.bytes == size > 0
    assert index.keep_prefill(0).kept == len(files(index)) == 0


def test_an_answer_goes_on_from_what_was_kept(index: Index, plain: Gem) -> None:
    """Also of an index that is opened anew, and the same answer."""
    assert first_answer(index, "append insert pop").usage["reused"] == 0
    index.keep_prefill(3)
    opened = Index.open(index.folder, index.gem)
    for question in ("append insert pop", "file open read", "loop while break"):
        answer = first_answer(opened, question)
        passage = len(index.gem.answer_prefix(answer.hits[0].chunk.passage))
        assert answer.usage["reused"] >= passage - 2
        wanted = without(index, plain).ask(question, 1, style="free", max_tokens=8)
        assert answer.text == wanted.text


def test_a_document_that_changed_is_read_anew_and_its_files_go(index: Index) -> None:
    index.keep_prefill(3)
    before = files(index)
    changed = "New words come first. " + text_of("lists")
    index.sync([Document("lists", changed)])
    answer = first_answer(index, "append insert pop")
    assert answer.hits[0].chunk.text.startswith("New words")
    assert answer.usage["reused"] == 0
    kept = index.keep_prefill(3)
    assert kept.kept == kept.chunks
    assert len(before & files(index)) == 2
    assert first_answer(index, "append insert pop").usage["reused"] > 60


def test_there_is_no_more_on_disk_than_was_allowed(index: Index) -> None:
    one = index.keep_prefill(1).bytes
    kept = index.keep_prefill(3, max_bytes=2 * one + one // 2)
    assert (kept.chunks, kept.kept) == (3, 2)
    assert kept.bytes <= 2 * one + one // 2


def test_what_is_asked_most_has_room_first(index: Index) -> None:
    one = index.keep_prefill(1).bytes
    before = files(index)
    for _ in range(2):
        index.ask("loop while break", 1, style="quote", max_tokens=4)
    kept = index.keep_prefill(2, max_bytes=one + one // 2)
    assert kept.documents == ["loops", "files"]
    assert (kept.chunks, kept.kept) == (2, 1)
    assert not before & files(index)


def test_short_chunks_are_not_kept(tiny: Gem, tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index", tiny)
    index.sync([Document("a", "A lamp gives light.")])
    assert index.keep_prefill(5).kept == 0


def test_a_model_that_cannot_keep_prefixes_is_refused(tmp_path: Path) -> None:
    gem = FakeGem()
    index = Index.open(tmp_path / "index", gem)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be 0 or more"):
        index.keep_prefill(-1)


def test_the_command_keeps_prefill(index: Index) -> None:
    arguments = ["index", "--index", str(index.folder), "--keep-prefill", "2"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert "kept keys and values of 2 of the 2 chunks of 2 documents" in found.output
    assert len(files(index)) == 2


# -- counts --------------------------------------------------------------------------------------


def test_counts_are_kept_with_the_index(tmp_path: Path) -> None:
    for sources in (["a", "a"], ["b"], ["b", "c"]):
        AskedCounts(tmp_path).add(sources)
    assert AskedCounts(tmp_path).most() == ["b", "a", "c"]
    assert AskedCounts(tmp_path / "none").most() == []


def test_counts_that_cannot_be_written_are_said_once(tmp_path: Path) -> None:
    counts = AskedCounts(tmp_path / "none")
    with pytest.warns(UserWarning, match=r"asked.db cannot be written .*is not counted"):
        counts.add(["a"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts.add(["a"])
    (tmp_path / "asked.db").write_bytes(b"not a database at all" * 100)
    assert AskedCounts(tmp_path).most() == []


def test_a_removed_document_is_kept_no_more(index: Index) -> None:
    index.ask("append insert pop", 1, style="quote", max_tokens=4)
    index.remove("lists")
    assert index.keep_prefill(1).documents == ["files"]
    shutil.rmtree(index.folder / FOLDER)
    assert index.ask("file open", 1, style="quote", max_tokens=4).hits
