"""Data sets of every kind read, checked, split and tokenised; what is wrong is named by its row."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gem_rag.errors import InputError
from gem_rag.tokens import TextEncoder
from gem_rag.training.recipe import Recipe, Source, from_state
from gem_rag.training.sources import (
    Corpus,
    HeldOut,
    load_corpus,
    load_data,
    read_source,
    with_teacher,
)

Rows = Sequence[dict[str, Any]]
TEXTS = [f"row {number} says hello" for number in range(6)]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Arrow files go to a folder of the tests; the variable is read when datasets is imported."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


@pytest.fixture(scope="module")
def new_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A path that does not exist yet."""
    root, numbers = tmp_path_factory.mktemp("data"), count()
    return lambda suffix: root / f"{next(numbers)}{suffix}"


@pytest.fixture(scope="module")
def jsonl(new_path: Callable[[str], Path]) -> Callable[[Rows], str]:
    """A new JSONL file of rows."""

    def write(rows: Rows) -> str:
        path = new_path(".jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def encoder(tokenizer: Any) -> TextEncoder:
    """Puts nothing around a text."""
    return TextEncoder(tokenizer)


@pytest.fixture(scope="session")
def bos_encoder(bos_tokenizer: Any) -> TextEncoder:
    """Puts <s> (0) before every text."""
    return TextEncoder(bos_tokenizer)


def recipe(**state: Any) -> Recipe:
    """A recipe that holds nothing out, but for what is given."""
    least = {"next_token": {}, "contrastive": {}, "evaluation": {"held_out": 0}}
    return from_state({**least, **state}, "here")


def loaded(encoder: TextEncoder, path: str, source: Any = None, **state: Any) -> Corpus:
    """The source at a path, named "mine"."""
    return load_corpus("mine", Source(path=path, **(source or {})), recipe(**state), encoder)


def texts_of(corpus: Corpus, encoder: TextEncoder, column: str = "text") -> list[str]:
    return [encoder.decode(ids) for ids in corpus.rows[column]]


def refusal(encoder: TextEncoder, path: str, source: Any = None, **state: Any) -> str:
    """The message with which the source is refused."""
    with pytest.raises(InputError) as error:
        loaded(encoder, path, source, **state)
    return str(error.value)


# -- files -------------------------------------------------------------------------------------


def test_jsonl_and_parquet_hold_the_same_rows(
    jsonl: Any, new_path: Any, encoder: TextEncoder
) -> None:
    rows = [{"text": text, "other": 5} for text in TEXTS]
    parquet = new_path(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    for path in (jsonl(rows), str(parquet)):
        corpus = loaded(encoder, path)
        assert corpus.name == "mine"
        assert corpus.rows.column_names == ["text", "row"]
        assert corpus.rows["text"] == [e.ids for e in encoder.encode(TEXTS)]
        assert corpus.rows["row"] == [1, 2, 3, 4, 5, 6]
        assert corpus.take(np.array([3, 0])) == [corpus.rows[3], corpus.rows[0]]
        assert corpus.cut == 0
        assert len(corpus.held_out) == 0


def test_a_folder_is_its_readable_files_in_order(new_path: Any, encoder: TextEncoder) -> None:
    folder = new_path("")
    (folder / "part").mkdir(parents=True)
    (folder / "b.txt").write_text("second")
    (folder / "a.md").write_text("# first")
    (folder / "part" / "c.txt").write_text("third")
    (folder / "d.bin").write_text("no text")
    corpus = loaded(encoder, str(folder))
    assert texts_of(corpus, encoder) == ["# first", "second", "third"]
    assert corpus.rows["row"] == [1, 2, 3]


def test_a_single_text_file_is_one_row(new_path: Any, encoder: TextEncoder) -> None:
    file = new_path(".txt")
    file.write_text("all of it\nin one row")
    assert texts_of(loaded(encoder, str(file)), encoder) == ["all of it\nin one row"]


def test_the_home_folder_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: TextEncoder
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.txt").write_text("at home")
    assert texts_of(loaded(encoder, "~/own.txt"), encoder) == ["at home"]


@pytest.mark.parametrize(
    "path", ["nowhere.jsonl", "/nowhere/at/all", "./nowhere", "~/nowhere", "a/nowhere.txt"]
)
def test_a_path_that_is_not_there(path: str, encoder: TextEncoder) -> None:
    assert refusal(encoder, path) == f"data 'mine': there is no file or folder {path}"


def test_a_hub_name_that_cannot_be_had(encoder: TextEncoder) -> None:
    message = refusal(encoder, "someone/something")
    assert message.startswith("data 'mine': someone/something cannot be read: ")
    assert "\n" not in message


def test_what_a_reader_says_is_one_line(
    jsonl: Any, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cause, where there is one: datasets puts an error of its own around it."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("around") from ValueError("what is wrong\nand all about it")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    path = jsonl([{"text": "good"}])
    assert refusal(encoder, path) == f"data 'mine': {path} cannot be read: what is wrong"


@pytest.mark.xfail(strict=True, reason="a dot in a hub name is taken for a file's")
def test_a_hub_name_may_hold_a_dot(encoder: TextEncoder) -> None:
    assert "cannot be read" in refusal(encoder, "someone/something-v1.1")


@pytest.mark.parametrize("text", ['{"text": "good"}\n{"text": \n', "no JSON at all\n"])
def test_malformed_jsonl_is_named(text: str, new_path: Any, encoder: TextEncoder) -> None:
    file = new_path(".jsonl")
    file.write_text(text)
    message = refusal(encoder, str(file))
    assert message.startswith(f"data 'mine': {file} cannot be read: JSON parse error")
    assert "\n" not in message


@pytest.mark.xfail(strict=True, reason="the reader counts rows from 0, and all other errors from 1")
def test_malformed_jsonl_is_named_by_its_row(new_path: Any, encoder: TextEncoder) -> None:
    file = new_path(".jsonl")
    file.write_text('{"text": "good"}\n{"text": \n')
    assert "row 2" in refusal(encoder, str(file))


def test_a_broken_parquet_file_is_named(new_path: Any, encoder: TextEncoder) -> None:
    file = new_path(".parquet")
    file.write_bytes(b"not a table")
    message = refusal(encoder, str(file))
    assert message.startswith(f"data 'mine': {file} cannot be read: ")
    assert "\n" not in message


def test_a_file_of_another_kind_is_named(new_path: Any, encoder: TextEncoder) -> None:
    file = new_path(".csv")
    file.write_text("text\nhello")
    assert str(file) in refusal(encoder, str(file))


@pytest.mark.xfail(strict=True, reason="a folder without texts ends in datasets' ValueError")
def test_a_folder_without_texts_is_named(new_path: Any, encoder: TextEncoder) -> None:
    folder = new_path("")
    folder.mkdir()
    assert "data 'mine'" in refusal(encoder, str(folder))


@pytest.mark.xfail(strict=True, reason="an empty file 'cannot be read: ' and no reason given")
def test_an_empty_file_is_named(new_path: Any, encoder: TextEncoder) -> None:
    file = new_path(".jsonl")
    file.write_text("")
    message = refusal(encoder, str(file))
    assert message.startswith("data 'mine'")
    assert not message.endswith(": ")


@pytest.mark.xfail(strict=True, reason="no path is taken for the working folder")
def test_a_source_without_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: TextEncoder
) -> None:
    """`Recipe.with_data` sees to it, and not everybody comes by it."""
    (tmp_path / "letter.txt").write_text("a private letter")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        load_corpus("mine", Source(), recipe(), encoder)


# -- columns -----------------------------------------------------------------------------------


def test_columns_go_by_the_files_names(jsonl: Any, encoder: TextEncoder) -> None:
    """Also where a name of ours stands for another column there."""
    rows = [{"document": "a question", "answer": "an answer", "query": "left out"}]
    columns = {"query": "document", "document": "answer"}
    corpus = loaded(encoder, jsonl(rows), {"kind": "pairs", "columns": columns})
    assert corpus.rows.column_names == ["query", "document", "row"]
    assert texts_of(corpus, encoder, "query") == ["a question"]
    assert texts_of(corpus, encoder, "document") == ["an answer"]


def test_columns_of_our_own_names_are_no_obstacle(jsonl: Any, encoder: TextEncoder) -> None:
    rows = [{"text": "hello", "row": 7, "cut": 8, "draw": 9}]
    assert loaded(encoder, jsonl(rows)).rows["row"] == [1]


def test_a_missing_column_names_those_there_are(jsonl: Any, encoder: TextEncoder) -> None:
    path = jsonl([{"texts": "hello", "label": 1}])
    assert refusal(encoder, path) == (
        f"data 'mine': {path} has no column 'text' (did you mean 'texts'?): its columns are "
        "texts, label; name the right one under data.mine.columns"
    )


def test_a_renamed_column_has_to_be_there(jsonl: Any, encoder: TextEncoder) -> None:
    """Even one that the kind can do without."""
    path = jsonl([{"text": "hello", "vec": [1.0]}])
    for column in ("text", "vector"):
        message = refusal(encoder, path, {"columns": {column: "vect"}})
        assert "has no column 'vect' (did you mean 'vec'?)" in message


def test_asked_for_negatives_have_to_be_there(jsonl: Any, encoder: TextEncoder) -> None:
    path = jsonl([{"query": "q", "document": "d"}])
    message = refusal(encoder, path, {"kind": "pairs", "negatives": 1})
    assert "has no column 'negatives': its columns are query, document" in message


@pytest.mark.xfail(strict=True, reason="ends in a KeyError: names are turned round by column")
def test_one_column_may_be_both(jsonl: Any, encoder: TextEncoder) -> None:
    columns = {"query": "text", "document": "text"}
    path = jsonl([{"text": "hello"}])
    corpus = loaded(encoder, path, {"kind": "pairs", "columns": columns})
    assert corpus.rows["query"] == corpus.rows["document"]


# -- bad rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [{"text": ""}, {"text": " \n\t"}, {"text": None}, {}], ids=str)
def test_an_empty_row_is_named(second: dict[str, Any], jsonl: Any, encoder: TextEncoder) -> None:
    path = jsonl([{"text": "good"}, second, {"text": "good"}])
    assert refusal(encoder, path) == (
        f"data 'mine', row 2 of {path}: 'text' is empty: correct or remove the row"
    )


@pytest.mark.parametrize("value", [5, 0.5, ["a"], {"a": "b"}, True], ids=str)
def test_a_row_that_is_not_text_is_named(value: Any, jsonl: Any, encoder: TextEncoder) -> None:
    path = jsonl([{"text": value}, {"text": value}])
    assert refusal(encoder, path) == (
        f"data 'mine', row 1 of {path}: 'text' is not text: correct or remove the row"
    )


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("pairs", "query", "document"),
        ("summary", "text", "summary"),
        ("prompt", "prompt", "answer"),
    ],
)
def test_bad_rows_are_named_by_their_column(
    kind: str, first: str, second: str, jsonl: Any, encoder: TextEncoder
) -> None:
    good = {first: "one", second: "two"}
    path = jsonl([good, good, {**good, second: " "}])
    message = refusal(encoder, path, {"kind": kind})
    assert message.startswith(f"data 'mine', row 3 of {path}: {second!r} is empty")


def test_rows_far_down_are_named_by_their_own_number(jsonl: Any, encoder: TextEncoder) -> None:
    """Rows are looked at a thousand at a time."""
    path = jsonl([{"text": "good"}] * 1234 + [{"text": ""}])
    assert f"row 1235 of {path}" in refusal(encoder, path)


@pytest.mark.parametrize("own", [["a"], [], None, ["a", " "], ["a", ""], "a"], ids=str)
def test_too_few_negatives_are_named_by_their_row(
    own: Any, jsonl: Any, encoder: TextEncoder
) -> None:
    pair = {"query": "q", "document": "d"}
    negatives = "a" if isinstance(own, str) else ["a", "b"]  # a column is of one type
    path = jsonl([{**pair, "negatives": negatives}, {**pair, "negatives": own}])
    message = refusal(encoder, path, {"kind": "pairs", "negatives": 2})
    row = 1 if isinstance(own, str) else 2
    assert message.startswith(f"data 'mine', row {row} of {path}: it has ")
    assert message.endswith(" negatives, and 2 are asked for")


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("negatives", [5, [5]], ids=str)
def test_negatives_that_are_not_text(
    asked: int, negatives: Any, request: pytest.FixtureRequest, jsonl: Any, encoder: TextEncoder
) -> None:
    """They do no harm where none are asked for, and are named where some are."""
    if (asked, negatives) != (0, [5]):
        reason = "ends in a TypeError or an AttributeError"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    path = jsonl([{"query": "q", "document": "d", "negatives": negatives}])
    source = {"kind": "pairs", "negatives": asked}
    if asked:
        assert f"row 1 of {path}" in refusal(encoder, path, source)
    else:
        assert loaded(encoder, path, source).rows.column_names == ["query", "document", "row"]


# -- texts to tokens ---------------------------------------------------------------------------


def test_over_long_texts_are_cut_and_counted(jsonl: Any, encoder: TextEncoder) -> None:
    texts = ["short", "a text that is much longer than that", "also much longer than it may be"]
    whole = [e.ids for e in encoder.encode(texts)]
    assert [len(ids) > 8 for ids in whole] == [False, True, True]
    corpus = loaded(encoder, jsonl([{"text": text} for text in texts]), max_length=8)
    assert corpus.rows["text"] == [ids[:8] for ids in whole]
    assert corpus.cut == 2


def test_a_text_of_exactly_the_maximum_is_not_cut(jsonl: Any, encoder: TextEncoder) -> None:
    path = jsonl([{"text": TEXTS[0]}])
    length = encoder.count(TEXTS[0])
    assert loaded(encoder, path, max_length=length).cut == 0
    assert loaded(encoder, path, max_length=length - 1).cut == 1
    assert loaded(encoder, path, {"overlong": "error"}, max_length=length).cut == 0


def test_a_row_is_counted_once_however_much_of_it_is_cut(jsonl: Any, encoder: TextEncoder) -> None:
    long = "far too long " * 5
    rows = [
        {"query": "q", "document": "d", "negatives": ["n", "n"]},
        {"query": long, "document": long, "negatives": [long, long]},
        {"query": "q", "document": "d", "negatives": ["n", long]},
    ]
    corpus = loaded(encoder, jsonl(rows), {"kind": "pairs", "negatives": 2}, max_length=6)
    assert corpus.cut == 2


@pytest.mark.parametrize("column", ["query", "document", "negatives"])
def test_over_long_rows_are_named_if_they_are_errors(
    column: str, jsonl: Any, encoder: TextEncoder
) -> None:
    """A row's number, also where there are several negatives to a row."""
    long = "far too long " * 5
    good = {"query": "q", "document": "d", "negatives": ["n", "m"]}
    bad = {**good, column: ["n", long] if column == "negatives" else long}
    path = jsonl([good, good, bad, good])
    source = {"kind": "pairs", "negatives": 2, "overlong": "error"}
    assert refusal(encoder, path, source, max_length=9) == (
        f"data 'mine', row 3 of {path}: a text has {encoder.count(long)} tokens and the recipe's "
        "maximum is 9: shorten it, raise max_length, or choose overlong: truncate or windows"
    )


@settings(max_examples=30)
@given(
    texts=st.lists(st.text("ab \n.", min_size=1, max_size=60), min_size=1, max_size=4),
    size=st.integers(2, 12),
    bos=st.booleans(),
)
def test_windows_hold_every_token_once(
    texts: list[str], size: int, bos: bool, request: pytest.FixtureRequest
) -> None:
    """But for the last one where it would be alone; BOS stands before each of them."""
    encoder = request.getfixturevalue("bos_encoder" if bos else "encoder")
    texts = [f"a{text}" for text in texts]  # none is empty
    folder = request.getfixturevalue("new_path")("")
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    head = [0] if bos else []
    expected = []
    for row, encoding in enumerate(encoder.encode(texts), 1):
        body, room = encoding.ids[len(head) :], size - len(head)
        parts = [head + body[at : at + room] for at in range(0, len(body), room)]
        expected += [(part, row) for part in parts if len(part) > 1]
    assume(expected)
    corpus = loaded(encoder, str(folder), {"overlong": "windows"}, max_length=size)
    assert list(zip(corpus.rows["text"], corpus.rows["row"], strict=True)) == expected
    assert corpus.cut == 0


@pytest.mark.xfail(strict=True, reason="data of which nothing is left ends in a ValueError")
def test_windows_of_single_tokens_leave_nothing(jsonl: Any, encoder: TextEncoder) -> None:
    message = refusal(encoder, jsonl([{"text": "a"}]), {"overlong": "windows"})
    assert message.startswith("data 'mine' has no rows to train on")


def test_prompts_stand_before_pairs(jsonl: Any, bos_encoder: TextEncoder) -> None:
    rows = [{"query": "what?", "document": "that", "negatives": ["this", "left out"]}]
    prompts = {"query": "query: ", "document": "passage: "}
    corpus = loaded(bos_encoder, jsonl(rows), {"kind": "pairs", "negatives": 1}, prompts=prompts)
    wanted = [e.ids for e in bos_encoder.encode(["query: what?", "passage: that", "passage: this"])]
    assert corpus.rows[0] == {
        "query": wanted[0],
        "document": wanted[1],
        "negatives": [wanted[2]],
        "row": 1,
    }


def test_running_text_gets_no_prompt(jsonl: Any, encoder: TextEncoder) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    corpus = loaded(encoder, jsonl([{"text": "plain"}]), prompts=prompts)
    assert texts_of(corpus, encoder) == ["plain"]


def test_queries_may_be_held_shorter(jsonl: Any, encoder: TextEncoder) -> None:
    long = "far too long " * 5
    path = jsonl([{"query": long, "document": long}])
    lengths = {}
    for short in (None, 3):
        corpus = loaded(encoder, path, {"kind": "pairs"}, max_length=7, query_length=short)
        lengths[short] = [len(corpus.rows[0][name]) for name in ("query", "document")]
    assert lengths == {None: [7, 7], 3: [3, 7]}


def test_the_first_negatives_are_used(jsonl: Any, encoder: TextEncoder) -> None:
    pair = {"query": "q", "document": "d"}
    path = jsonl([{**pair, "negatives": ["a", "b", "c"]}, {**pair, "negatives": ["d", "e", "f"]}])
    for asked in (1, 2, 3):
        corpus = loaded(encoder, path, {"kind": "pairs", "negatives": asked})
        found = [[encoder.decode(n) for n in row] for row in corpus.rows["negatives"]]
        assert found == [["a", "b", "c"][:asked], ["d", "e", "f"][:asked]]
    none = loaded(encoder, path, {"kind": "pairs"})
    assert "negatives" not in none.rows.column_names


def test_a_negative_may_be_a_plain_text(jsonl: Any, encoder: TextEncoder) -> None:
    path = jsonl([{"query": "q", "document": "d", "negatives": "not a list"}])
    corpus = loaded(encoder, path, {"kind": "pairs", "negatives": 1})
    assert [encoder.decode(n) for n in corpus.rows[0]["negatives"]] == ["not a list"]


@pytest.mark.parametrize("empty", ["", None], ids=repr)
@pytest.mark.xfail(strict=True, reason="empty negatives are not counted, and used all the same")
def test_empty_negatives_are_passed_over(
    empty: str | None, jsonl: Any, encoder: TextEncoder
) -> None:
    """What has no tokens has no vector, and would end the run at its step."""
    path = jsonl([{"query": "q", "document": "d", "negatives": [empty, "real"]}])
    corpus = loaded(encoder, path, {"kind": "pairs", "negatives": 1})
    assert [encoder.decode(n) for n in corpus.rows[0]["negatives"]] == ["real"]


@pytest.mark.parametrize(
    ("kind", "first", "second"), [("summary", "text", "summary"), ("prompt", "prompt", "answer")]
)
def test_suffixes_stand_behind_texts(
    kind: str, first: str, second: str, jsonl: Any, bos_encoder: TextEncoder
) -> None:
    """Nothing is put around them, and both are bounded."""
    path = jsonl([{first: "The text.", second: "A suffix."}, {first: "a", second: "b" * 40}])
    corpus = loaded(bos_encoder, path, {"kind": kind}, max_length=20)
    assert set(corpus.rows.column_names) == {"text", "suffix", "row"}
    assert corpus.rows[0]["text"] == bos_encoder.encode(["The text."])[0].ids
    assert corpus.rows[0]["text"][0] == 0
    assert corpus.rows[0]["suffix"] == bos_encoder.encode_continuation("A suffix.")
    assert len(corpus.rows[1]["suffix"]) == 20
    assert corpus.cut == 1


def test_text_never_becomes_a_special_token(jsonl: Any, bos_encoder: TextEncoder) -> None:
    corpus = loaded(bos_encoder, jsonl([{"text": "<s></s><pad>"}]))
    assert [token for token in corpus.rows[0]["text"] if token < 5] == [0]


# -- held out ----------------------------------------------------------------------------------


def split(encoder: TextEncoder, path: str, **evaluation: Any) -> tuple[list[str], list[str]]:
    """(held out, kept) texts."""
    corpus = loaded(encoder, path, evaluation=evaluation)
    return list(corpus.held_out["text"]), texts_of(corpus, encoder)


@settings(max_examples=15)
@given(
    numbers=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    share=st.floats(0, 0.6),
    order=st.randoms(use_true_random=False),
)
def test_held_out_texts_are_in_no_row_that_trains(
    numbers: list[int], share: float, order: Any, request: pytest.FixtureRequest
) -> None:
    """Equal texts stay together, and the order of rows decides nothing."""
    encoder, jsonl = (request.getfixturevalue(name) for name in ("encoder", "jsonl"))
    texts = [f"text {number}" for number in numbers]
    try:
        held_out, kept = split(encoder, jsonl([{"text": t} for t in texts]), held_out=share)
    except InputError:  # equal texts may be most of the data
        return
    assert sorted(held_out + kept) == sorted(texts)
    assert not set(held_out) & set(kept)
    order.shuffle(texts)
    again = split(encoder, jsonl([{"text": t} for t in texts]), held_out=share)
    assert [sorted(part) for part in again] == [sorted(held_out), sorted(kept)]


@pytest.mark.parametrize(
    ("share", "at_most", "expected"), [(0.1, 500, 10), (0.5, 20, 20), (0.009, 500, 0), (0.5, 0, 0)]
)
def test_held_out_rows_are_so_many(
    share: float, at_most: int, expected: int, jsonl: Any, encoder: TextEncoder
) -> None:
    path = jsonl([{"text": f"text {number}"} for number in range(100)])
    held_out, kept = split(encoder, path, held_out=share, at_most=at_most)
    assert (len(held_out), len(kept)) == (expected, 100 - expected)


def test_held_out_rows_do_not_hang_on_the_run(jsonl: Any, encoder: TextEncoder) -> None:
    """So that runs of other settings are measured on the same rows."""
    path = jsonl([{"text": f"text {number}"} for number in range(40)])
    evaluation = {"held_out": 0.2}
    one = loaded(encoder, path, evaluation=evaluation)
    other = loaded(encoder, path, evaluation=evaluation, seed=7, max_length=3, scope="full")
    assert one.held_out["row"] == other.held_out["row"]
    assert len(one.held_out) == 8


def test_held_out_pairs_keep_their_texts(jsonl: Any, encoder: TextEncoder) -> None:
    rows = [{"query": f"q{number}", "document": f"d{number}"} for number in range(20)]
    prompts = {"query": "query: ", "document": ""}
    corpus = loaded(
        encoder, jsonl(rows), {"kind": "pairs"}, evaluation={"held_out": 0.25}, prompts=prompts
    )
    assert len(corpus.held_out) == 5
    for row in corpus.held_out:
        assert {name: row[name] for name in ("query", "document")} == rows[row["row"] - 1]
    assert sorted([*corpus.held_out["row"], *corpus.rows["row"]]) == list(range(1, 21))


@pytest.mark.parametrize(
    ("kind", "columns"), [("summary", ("text", "summary")), ("prompt", ("prompt", "answer"))]
)
def test_nothing_is_held_out_that_is_not_measured(
    kind: str, columns: tuple[str, str], jsonl: Any, encoder: TextEncoder
) -> None:
    path = jsonl([dict.fromkeys(columns, f"text {number}") for number in range(20)])
    corpus = loaded(encoder, path, {"kind": kind}, evaluation={"held_out": 0.5})
    assert (len(corpus.held_out), len(corpus.rows)) == (0, 20)


def test_nothing_is_held_out_where_data_to_measure_on_is_given(
    jsonl: Any, encoder: TextEncoder
) -> None:
    path = jsonl([{"text": f"text {number}"} for number in range(20)])
    held_out, kept = split(encoder, path, held_out=0.5, data={"test": {"path": "other.jsonl"}})
    assert (len(held_out), len(kept)) == (0, 20)


@pytest.mark.xfail(strict=True, reason="all rows that tie with the last one are held out too")
def test_equal_texts_do_not_hold_more_out_than_asked_for(jsonl: Any, encoder: TextEncoder) -> None:
    path = jsonl([{"text": f"text {number // 10}"} for number in range(40)])
    held_out, kept = split(encoder, path, held_out=0.1, at_most=4)
    assert len(held_out) <= 4
    assert not set(held_out) & set(kept)


@pytest.mark.xfail(strict=True, reason="all rows that tie with the last one are held out too")
def test_rows_of_one_text_are_trained_on(jsonl: Any, encoder: TextEncoder) -> None:
    assert len(loaded(encoder, jsonl([{"text": "same"}] * 40), evaluation={}).rows) == 40


# -- data to measure on ------------------------------------------------------------------------


def test_sources_are_read_as_texts(jsonl: Any) -> None:
    rows = [{"frage": "q", "document": "d"}, {"frage": "r", "document": "e"}]
    source = Source(path=jsonl(rows), kind="pairs", columns={"query": "frage"})
    found = read_source("mine", source)
    assert found["query"] == ["q", "r"]
    assert found["document"] == ["d", "e"]
    assert found["row"] == [1, 2]


def test_sources_read_as_texts_are_checked(jsonl: Any) -> None:
    source = Source(path=jsonl([{"text": "good"}, {"text": ""}]))
    with pytest.raises(InputError, match="data 'mine', row 2 of "):
        read_source("mine", source)


def test_a_recipes_data_is_read_whole(jsonl: Any, encoder: TextEncoder) -> None:
    """Every source in order, with what is held out of each."""
    texts = [{"text": f"text {number}"} for number in range(20)]
    pairs = [{"query": f"q{number}", "document": f"d{number}"} for number in range(20)]
    data = {
        "one": {"path": jsonl(texts)},
        "other": {"path": jsonl(pairs), "kind": "pairs"},
    }
    corpora, measured = load_data(recipe(data=data, evaluation={"held_out": 0.2}), encoder)
    assert [(c.name, len(c.rows)) for c in corpora] == [("one", 16), ("other", 16)]
    assert [(m.name, m.kind, len(m.rows)) for m in measured] == [
        ("one", "text", 4),
        ("other", "pairs", 4),
    ]
    assert measured[0].rows is corpora[0].held_out


def test_data_to_measure_on_takes_the_place_of_held_out_rows(
    jsonl: Any, encoder: TextEncoder
) -> None:
    texts = jsonl([{"text": f"text {number}"} for number in range(20)])
    pairs = jsonl([{"query": f"q{number}", "document": f"d{number}"} for number in range(20)])
    for at_most, expected in ((3, 3), (500, 20)):
        evaluation = {
            "held_out": 0.5,
            "at_most": at_most,
            "data": {"test": {"path": pairs, "kind": "pairs"}},
        }
        made = recipe(data={"texts": {"path": texts}}, evaluation=evaluation)
        [corpus], [measured] = load_data(made, encoder)
        assert len(corpus.rows) == 20
        assert (measured.name, measured.kind) == ("test", "pairs")
        assert measured.texts() == [f"d{number}" for number in range(expected)]


@pytest.mark.parametrize(
    ("kind", "row", "pairs", "texts"),
    [
        ("pairs", {"query": "q", "document": "d"}, [("q", "d")], ["d"]),
        ("text", {"text": "one two\n three"}, [("one", "two three")], ["one two\n three"]),
        ("text", {"text": "single"}, [], ["single"]),
        ("summary", {"text": "t", "summary": "s"}, [], ["t"]),
        ("prompt", {"prompt": "p", "answer": "a"}, [], ["a"]),
    ],
)
def test_what_is_measured_on_a_row(
    kind: Any, row: dict[str, str], pairs: list[tuple[str, str]], texts: list[str]
) -> None:
    measured = HeldOut("mine", kind, datasets.Dataset.from_list([row]))
    assert measured.pairs() == pairs
    assert measured.texts() == texts


# -- hash --------------------------------------------------------------------------------------


def in_memory(texts: list[list[int]], **columns: Any) -> Corpus:
    """A corpus of token ids that no file lies behind."""
    rows = datasets.Dataset.from_dict({"text": texts, "row": range(1, len(texts) + 1), **columns})
    return Corpus("mine", Source(), rows, rows.select([]), 0)


TOKENS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=50)
@given(one=TOKENS, other=TOKENS)
def test_hashes_are_equal_where_all_tokens_are(
    one: list[list[int]], other: list[list[int]]
) -> None:
    """Token for token: where a row ends counts too."""
    first, second = in_memory(one), in_memory(other)
    assert (first.hash() == second.hash()) == (one == other)
    assert first.hash() == in_memory(one).hash()


def test_every_column_is_in_the_hash() -> None:
    texts = [[1, 2], [3]]
    corpora = [
        in_memory(texts),
        in_memory(texts, suffix=[[4], [5]]),
        in_memory(texts, suffix=[[4], [6]]),
        in_memory(texts, negatives=[[[4]], [[5]]]),
        in_memory(texts, negatives=[[[4]], [[6]]]),
        in_memory(texts, vector=[[0.5], [0.25]]),
        in_memory(texts, vector=[[0.5], [0.5]]),
    ]
    assert len({corpus.hash() for corpus in corpora}) == len(corpora)


def test_rows_that_were_chosen_hash_as_they_are() -> None:
    """Whatever lies beside them in memory."""
    whole = in_memory([[1, 2], [3], [4, 5], [6]])
    for indices, texts in (([1, 2], [[3], [4, 5]]), ([3, 0], [[6], [1, 2]])):
        chosen = dataclasses.replace(whole, rows=whole.rows.select(indices))
        direct = in_memory(texts)
        rows = direct.rows.remove_columns("row").add_column("row", [i + 1 for i in indices])
        assert chosen.hash() == dataclasses.replace(direct, rows=rows).hash()


def test_the_same_source_has_the_same_hash(jsonl: Any, encoder: TextEncoder) -> None:
    rows = [{"text": text} for text in TEXTS]
    path = jsonl(rows)
    first = loaded(encoder, path).hash()
    assert loaded(encoder, path).hash() == first
    assert len(first) == 16
    assert loaded(encoder, jsonl([*rows[:5], {"text": f"{TEXTS[5]}!"}])).hash() != first
    assert loaded(encoder, jsonl(rows[::-1])).hash() != first


@pytest.mark.parametrize("change", ["copied", "touched", "another setting"])
def test_the_hash_hangs_on_the_tokens_alone(
    change: str, jsonl: Any, new_path: Any, encoder: TextEncoder
) -> None:
    """Else a run could not be resumed after its data was copied, or its cache was lost."""
    path, other, state = jsonl([{"text": text} for text in TEXTS]), new_path(".jsonl"), {}
    first = loaded(encoder, path).hash()
    if change == "copied":
        path = shutil.copyfile(path, other)
    elif change == "touched":
        os.utime(path, (1e9, 1e9))
    else:
        state = {"trainer": {"bf16": True}}
    assert loaded(encoder, str(path), **state).hash() == first


# -- a teacher's vectors -----------------------------------------------------------------------


class Teacher:
    """Stands for a sentence-transformers model: a vector of a text's length and first letter."""

    seen: list[str]

    def __init__(self, name: str) -> None:
        if name != "some/teacher":
            raise OSError(f"{name} is not there\nand a long explanation")
        Teacher.seen = []

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:
        Teacher.seen += texts
        return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float64)


@pytest.fixture
def _teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the library, which takes seconds to import."""
    stub = SimpleNamespace(SentenceTransformer=Teacher)
    monkeypatch.setitem(sys.modules, "sentence_transformers", stub)


@pytest.mark.usefixtures("_teachers")
def test_a_teacher_sees_what_the_student_reads(jsonl: Any, encoder: TextEncoder) -> None:
    """Cut, and behind the prompt."""
    path = jsonl(
        [{"query": "what?", "document": "a long document"}, {"query": "q", "document": "d"}]
    )
    before = loaded(
        encoder, path, {"kind": "pairs"}, max_length=9, prompts={"query": "? ", "document": ""}
    )
    after = with_teacher(before, "some/teacher", encoder)
    documents = texts_of(before, encoder, "document")
    assert Teacher.seen == ["? what?", "? q", *documents]
    assert documents[0] != "a long document"
    assert after.rows["query_vector"] == [[7.0, ord("?")], [3.0, ord("?")]]
    assert after.rows["document_vector"] == [[len(t), ord(t[0])] for t in documents]
    assert after.rows["query"] == before.rows["query"]
    assert (after.name, after.source, after.cut) == (before.name, before.source, before.cut)
    assert after.hash() != before.hash()


@pytest.mark.usefixtures("_teachers")
def test_a_teacher_of_running_text(jsonl: Any, encoder: TextEncoder) -> None:
    corpus = with_teacher(loaded(encoder, jsonl([{"text": "hello"}])), "some/teacher", encoder)
    assert corpus.rows["vector"] == [[5.0, ord("h")]]
    assert corpus.rows.column_names == ["text", "row", "vector"]


@pytest.mark.usefixtures("_teachers")
@pytest.mark.parametrize("teacher", ["some/teacher", "columns"])
def test_what_the_contrastive_loss_does_not_read_gets_no_vectors(
    teacher: str, jsonl: Any, encoder: TextEncoder
) -> None:
    path = jsonl([{"text": "hello", "summary": "hi"}])
    corpus = loaded(encoder, path, {"kind": "summary"})
    assert with_teacher(corpus, teacher, encoder).rows.column_names == corpus.rows.column_names


@pytest.mark.usefixtures("_teachers")
def test_a_teacher_that_cannot_be_had(jsonl: Any, encoder: TextEncoder) -> None:
    corpus = loaded(encoder, jsonl([{"text": "hello"}]))
    with pytest.raises(InputError) as error:
        with_teacher(corpus, "other/teacher", encoder)
    assert str(error.value) == (
        "teacher 'other/teacher' cannot be loaded: other/teacher is not there"
    )


def test_a_teacher_needs_its_library(
    jsonl: Any, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    corpus = loaded(encoder, jsonl([{"text": "hello"}]))
    with pytest.raises(InputError, match="pip install sentence-transformers"):
        with_teacher(corpus, "some/teacher", encoder)


@pytest.mark.usefixtures("_teachers")
@pytest.mark.xfail(strict=True, reason="ends in datasets' error about a column that is there")
def test_a_teacher_takes_the_place_of_the_datas_vectors(jsonl: Any, encoder: TextEncoder) -> None:
    corpus = loaded(encoder, jsonl([{"text": "hello", "vector": [1.0]}]))
    assert with_teacher(corpus, "some/teacher", encoder).rows["vector"] == [[5.0, ord("h")]]


def test_vectors_may_be_in_the_data(jsonl: Any, encoder: TextEncoder) -> None:
    rows = [
        {"query": "q", "document": "d", "qv": [1.0, 0.0], "document_vector": [0.0, 1.0]},
        {"query": "r", "document": "e", "qv": [0.5, 0.5], "document_vector": [0.5, 0.25]},
    ]
    source = {"kind": "pairs", "columns": {"query_vector": "qv"}}
    corpus = loaded(encoder, jsonl(rows), source)
    assert with_teacher(corpus, "columns", encoder) is corpus
    assert corpus.rows["query_vector"] == [[1.0, 0.0], [0.5, 0.5]]
    assert corpus.rows["document_vector"] == [[0.0, 1.0], [0.5, 0.25]]


@pytest.mark.usefixtures("_teachers")
def test_a_recipes_teacher_is_asked(jsonl: Any, encoder: TextEncoder) -> None:
    data = {"texts": {"path": jsonl([{"text": "hello"}])}}
    [corpus], _ = load_data(recipe(data=data, contrastive={"teacher": "some/teacher"}), encoder)
    assert corpus.rows["vector"] == [[5.0, ord("h")]]
    [corpus], _ = load_data(recipe(data=data), encoder)
    assert "vector" not in corpus.rows.column_names


@pytest.mark.parametrize(
    ("kind", "row", "missing"),
    [
        ("text", {"text": "t"}, "vector"),
        ("pairs", {"query": "q", "document": "d", "query_vector": [1.0]}, "document_vector"),
        ("pairs", {"query": "q", "document": "d", "document_vector": [1.0]}, "query_vector"),
    ],
)
def test_missing_vectors_are_named(
    kind: str, row: dict[str, Any], missing: str, jsonl: Any, encoder: TextEncoder
) -> None:
    corpus = loaded(encoder, jsonl([row]), {"kind": kind})
    with pytest.raises(InputError, match=f"data 'mine' has no column '{missing}' of a teacher's"):
        with_teacher(corpus, "columns", encoder)


@pytest.mark.parametrize("second", [[1.0], None, "x"], ids=repr)
@pytest.mark.xfail(strict=True, reason="not looked at before training, and fails or is left out")
def test_vectors_that_do_not_fit_are_named_by_their_row(
    second: Any, jsonl: Any, encoder: TextEncoder
) -> None:
    vectors = ["x", "x"] if second == "x" else [[1.0, 2.0], second]
    path = jsonl([{"text": "t", "vector": vector} for vector in vectors])
    with pytest.raises(InputError, match=f"row [12] of {path}"):
        with_teacher(loaded(encoder, path), "columns", encoder)


@pytest.mark.xfail(strict=True, reason="windows lose the vectors, and the error denies the column")
def test_vectors_of_texts_in_windows(jsonl: Any, encoder: TextEncoder) -> None:
    """A vector of a whole text is none of its pieces: it is that which has to be said."""
    path = jsonl([{"text": "hello", "vector": [1.0]}])
    with pytest.raises(InputError, match="windows"):
        with_teacher(loaded(encoder, path, {"overlong": "windows"}), "columns", encoder)
