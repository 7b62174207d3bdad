"""Data sets of every kind read, checked, split and tokenized; what is wrong is named by its row."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import helpers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.core.truncation import prefix_length
from gem_rag.errors import InputError
from gem_rag.training.batches import StepDataset, rows_drawn
from gem_rag.training.corpus import Corpus, HeldOut, _RowTokenizer, load_corpus
from gem_rag.training.data import add_teacher, load_data
from gem_rag.training.recipe import COLUMNS, Recipe, Source, from_state
from gem_rag.training.sources import read_source
from gem_rag.training.teacher import add_teacher_vectors, load_teacher, teacher_dim

Rows = Sequence[dict[str, Any]]
PLAIN = SafeTokenizer(helpers.build_tokenizer())
BOS = SafeTokenizer(helpers.build_tokenizer(bos=True))  # puts <s> (0) before every text
TEXTS = [f"row {number} says hello" for number in range(6)]


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


def recipe(**state: Any) -> Recipe:
    """A recipe that holds nothing out, but for what is given."""
    least = {"next_token": {}, "contrastive": {}, "evaluation": {"held_out": 0}}
    return from_state({**least, **state}, "here")


def loaded(path: str, source: Any = None, encoder: SafeTokenizer = PLAIN, **state: Any) -> Corpus:
    """The source at a path, named "mine"."""
    return load_corpus("mine", Source(path=path, **(source or {})), recipe(**state), encoder)


def texts_of(corpus: Corpus, column: str = "text") -> list[str]:
    return [PLAIN.decode(ids) for ids in corpus.rows[column]]


def refusal(path: str, source: Any = None, **state: Any) -> str:
    """The message with which the source is refused."""
    with pytest.raises(InputError) as error:
        loaded(path, source, **state)
    return str(error.value)


# -- files -------------------------------------------------------------------------------------


def test_jsonl_and_parquet_hold_the_same_rows(jsonl: Any, new_path: Any) -> None:
    rows = [{"text": text, "other": 5} for text in TEXTS]
    parquet = new_path(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    for path in (jsonl(rows), str(parquet)):
        corpus = loaded(path)
        assert (corpus.name, corpus.num_truncated, len(corpus.held_out)) == ("mine", 0, 0)
        assert corpus.rows.column_names == ["text", "row"]
        assert corpus.rows["text"] == [e.ids for e in PLAIN.encode(TEXTS)]
        assert corpus.rows["row"] == [1, 2, 3, 4, 5, 6]
        assert corpus.take(np.array([3, 0])) == [corpus.rows[3], corpus.rows[0]]


def test_a_folder_is_its_readable_files_in_order(new_path: Any) -> None:
    folder = new_path("")
    (folder / "part").mkdir(parents=True)
    files = {"b.txt": "second", "a.md": "# first", "part/c.txt": "third", "d.bin": "no text"}
    for name, text in files.items():
        (folder / name).write_text(text)
    corpus = loaded(str(folder))
    assert texts_of(corpus) == ["# first", "second", "third"]
    assert corpus.rows["row"] == [1, 2, 3]


def test_a_single_text_file_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is named from the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.txt").write_text("all of it\nin one row")
    for path in (str(tmp_path / "own.txt"), "~/own.txt"):
        assert texts_of(loaded(path)) == ["all of it\nin one row"]


@pytest.mark.parametrize(
    "path", ["nowhere.jsonl", "/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/nowhere.txt"]
)
def test_a_path_that_is_not_there(path: str) -> None:
    assert refusal(path) == (
        f"data 'mine': there is no file or folder {path} (JSONL, Parquet, or documents)"
    )


@pytest.mark.parametrize("name", ["someone/something", "someone/something-v1.1"])
def test_a_hub_name_that_cannot_be_had(name: str) -> None:
    message = refusal(name)
    assert message.startswith(f"data 'mine': {name} cannot be read: ")
    assert "\n" not in message


def test_what_a_reader_says_is_one_line(jsonl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause, where there is one: datasets puts an error of its own around it."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("around") from ValueError("what is wrong\nand all about it")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    path = jsonl([{"text": "good"}])
    assert refusal(path) == f"data 'mine': {path} cannot be read: what is wrong"


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".jsonl", '{"text": "good"}\n{"text": \n', "cannot be read: line 2 is not JSON (Expect"),
        (".jsonl", '{"text": "good"}\n\nnot', "cannot be read: line 3 is not JSON (Expecting val"),
        (".jsonl", '{"text": "good"}\n["a"]\n', "cannot be read: line 2 is no JSON object"),
        (".jsonl", "", "cannot be read: it is empty"),
        (".jsonl", "\n \n", "cannot be read: it is empty"),
        (".parquet", "not a table", "cannot be read: Parquet "),
        (".txt", "", "is empty: "),
        (".csv", "text\nhello", "is not read for its rows: write it as JSONL or Parquet"),
        (".png", "text", "is of no kind that can be indexed: "),
        ("", None, "holds no rows"),  # a folder
    ],
)
def test_what_cannot_be_read_is_named(
    suffix: str, text: str | None, message: str, new_path: Any
) -> None:
    path = new_path(suffix)
    path.mkdir() if text is None else path.write_text(text)
    found = refusal(str(path))
    assert found.startswith(f"data 'mine': {path} {message}")
    assert "\n" not in found


def test_a_source_without_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Recipe.with_data` sees to it, and not everybody comes by it."""
    (tmp_path / "letter.txt").write_text("a private letter")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="data 'mine'"):
        load_corpus("mine", Source(), recipe(), PLAIN)


# -- columns -----------------------------------------------------------------------------------


def test_columns_have_the_files_names(jsonl: Any) -> None:
    """Also where a name of ours stands for another column there."""
    rows = [{"document": "a question", "answer": "an answer", "query": "left out"}]
    columns = {"query": "document", "document": "answer"}
    corpus = loaded(jsonl(rows), {"kind": "pairs", "columns": columns})
    assert corpus.rows.column_names == ["query", "document", "row"]
    assert texts_of(corpus, "query") == ["a question"]
    assert texts_of(corpus, "document") == ["an answer"]


def test_columns_of_our_own_names_are_no_obstacle(jsonl: Any) -> None:
    rows = [{"text": "hello", "row": 7, "cut": 8, "draw": 9}]
    assert loaded(jsonl(rows)).rows["row"] == [1]


def test_a_missing_column_names_those_there_are(jsonl: Any) -> None:
    """Also one that the kind can do without, if it is asked for."""
    path = jsonl([{"texts": "hello", "text": "hello", "vec": [1.0]}])
    for column, own, near in (("text", "textes", "texts"), ("vector", "vect", "vec")):
        assert refusal(path, {"columns": {column: own}}) == (
            f"data 'mine': {path} has no column {own!r} (did you mean {near!r}?): its columns are "
            "texts, text, vec; name the right one under data.mine.columns"
        )
    path = jsonl([{"query": "q", "document": "d"}])
    message = refusal(path, {"kind": "pairs", "negatives": 1})
    assert "has no column 'negatives': its columns are query, document" in message
    assert "has no column 'text': its columns are query, document" in refusal(path)


def test_two_columns_are_not_one(jsonl: Any) -> None:
    columns = {"query": "text", "document": "text"}
    path = jsonl([{"text": "hello"}])
    assert refusal(path, {"kind": "pairs", "columns": columns}) == (
        "data 'mine': the columns 'query' and 'document' are both 'text': name two under "
        "data.mine.columns"
    )


# -- bad rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "what"),
    [
        *[(row, "is empty") for row in ({"text": ""}, {"text": " \n\t"}, {"text": None}, {})],
        *[({"text": value}, "is not text") for value in (5, 0.5, ["a"], {"a": "b"}, True)],
    ],
    ids=str,
)
def test_a_row_without_a_text_is_named(row: dict[str, Any], what: str, jsonl: Any) -> None:
    path = jsonl([{"text": "good"}, row, row] if what == "is empty" else [row, row])
    number = 2 if what == "is empty" else 1  # a column is of one type
    assert refusal(path) == (
        f"data 'mine', row {number} of {path}: 'text' {what}: correct or remove the row"
    )


@pytest.mark.parametrize("kind", ["pairs", "summary", "prompt"])
def test_bad_rows_are_named_by_their_column(kind: Any, jsonl: Any) -> None:
    first, second = COLUMNS[kind][0]
    good = {first: "one", second: "two"}
    path = jsonl([good, good, {**good, second: " "}])
    message = refusal(path, {"kind": kind})
    assert message.startswith(f"data 'mine', row 3 of {path}: {second!r} is empty")


def test_rows_far_down_are_named_by_their_own_number(jsonl: Any) -> None:
    """Rows are looked at a thousand at a time."""
    path = jsonl([{"text": "good"}] * 1234 + [{"text": ""}])
    assert f"row 1235 of {path}" in refusal(path)


@pytest.mark.parametrize(
    ("negatives", "row", "count"),
    [
        ([["a", "b"], ["a"]], 2, 1), ([["a", "b"], []], 2, 0), ([["a", "b"], None], 2, 0),
        ([["a", "b"], ["a", " "]], 2, 1), ([["a", "b"], ["a", ""]], 2, 1),
        ([["a", "b"], ["a", None]], 2, 1), (["a", "b"], 1, 1), ([5, 6], 1, 0), ([[5, 6]], 1, 0),
    ],
    ids=str,
)  # fmt: skip
def test_too_few_negatives_are_named_by_their_row(
    negatives: list[Any], row: int, count: int, jsonl: Any
) -> None:
    path = jsonl([{"query": "q", "document": "d", "negatives": own} for own in negatives])
    assert refusal(path, {"kind": "pairs", "negatives": 2}) == (
        f"data 'mine', row {row} of {path}: it has {count} negatives that are texts, and 2 are "
        "asked for"
    )


@pytest.mark.parametrize("encoder", [PLAIN, BOS], ids=["plain", "bos"])
@pytest.mark.parametrize("prompt", ["", "passage: "])
def test_a_document_is_read_after_its_context(
    encoder: SafeTokenizer, prompt: str, jsonl: Any
) -> None:
    """As in an index: prompt, context, an empty line, and the document, whose start is noted."""
    rows = [
        {"query": "q", "document": "the lamp", "context": "a pump\n\na door"},
        {"query": "q", "document": "the lamp", "context": ""},
        {"query": "q", "document": "the lamp", "context": None},
    ]
    corpus = loaded(
        jsonl(rows), {"kind": "pairs"}, encoder, prompts={"query": "", "document": prompt}
    )
    in_context, *alone = [list(ids) for ids in corpus.rows["document"]]
    starts = corpus.rows["start"]
    assert in_context == encoder.encode([f"{prompt}a pump\n\na door\n\nthe lamp"])[0].ids
    assert encoder.decode(in_context[starts[0] :]).strip() == "the lamp"
    assert alone == [encoder.encode([f"{prompt}the lamp"])[0].ids] * 2
    assert starts[1:] == [0, 0]


@given(
    before=st.text("ab ", max_size=40), own=st.text("xy", min_size=1, max_size=30),
    most=st.integers(12, 40),
)  # fmt: skip
@settings(max_examples=40)
def test_contexts_are_as_long_as_there_is_room(before: str, own: str, most: int) -> None:
    """What is nearest to the document stays; of a document that is too long, its beginning."""
    prompt = "p: "
    tokenize = _RowTokenizer("mine", Source(), BOS, [1])
    columns = tokenize.after_contexts([own], [before], most, prompt)
    [ids], [start] = columns["document"], columns["start"]
    shift = prompt + (f"{before}\n\n" if before else "")
    encoding = BOS.encode([shift + own])[0]
    own_ids = [
        token
        for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True)
        if end > len(shift)
    ]
    head = prefix_length(encoding, prompt)
    room = most - head
    assert len(ids) <= most
    assert list(ids[:head]) == encoding.ids[:head]
    assert tokenize.truncated == [int(len(own_ids) > room)]
    assert list(ids[head:]) == encoding.ids[head:][-max(room, len(own_ids)) :][:room]
    if before:
        assert list(ids[start:]) == own_ids[:room]
    else:
        assert start == 0


@pytest.mark.parametrize("negatives", [["a"], 5, [5], None], ids=str)
def test_negatives_are_not_looked_at_where_none_are_asked_for(negatives: Any, jsonl: Any) -> None:
    path = jsonl([{"query": "q", "document": "d", "negatives": negatives}])
    corpus = loaded(path, {"kind": "pairs"})
    assert corpus.rows.column_names == ["query", "document", "row"]


# -- texts to tokens ---------------------------------------------------------------------------


def test_over_long_texts_are_cut_and_counted(jsonl: Any) -> None:
    """One of exactly the maximum is not."""
    whole = [e.ids for e in PLAIN.encode(["short", *TEXTS[:2]])]
    length = len(whole[1])
    assert len(whole[0]) < length - 1 == len(whole[2]) - 1
    path = jsonl([{"text": text} for text in ("short", *TEXTS[:2])])
    for size, cut in ((length, 0), (length - 1, 2)):
        corpus = loaded(path, max_length=size)
        assert corpus.rows["text"] == [ids[:size] for ids in whole]
        assert corpus.num_truncated == cut
    assert loaded(path, {"truncation": "error"}, max_length=length).num_truncated == 0


def test_a_row_is_counted_once_however_much_of_it_is_cut(jsonl: Any) -> None:
    long = "far too long " * 5
    rows = [
        {"query": "q", "document": "d", "negatives": ["n", "n"]},
        {"query": long, "document": long, "negatives": [long, long]},
        {"query": "q", "document": "d", "negatives": ["n", long]},
    ]
    corpus = loaded(jsonl(rows), {"kind": "pairs", "negatives": 2}, max_length=6)
    assert corpus.num_truncated == 2


@pytest.mark.parametrize("column", ["query", "document", "negatives"])
def test_over_long_rows_are_named_if_they_are_errors(column: str, jsonl: Any) -> None:
    """A row's number, also where there are several negatives to a row."""
    long = "far too long " * 5
    good = {"query": "q", "document": "d", "negatives": ["n", "m"]}
    bad = {**good, column: ["n", long] if column == "negatives" else long}
    path = jsonl([good, good, bad, good])
    source = {"kind": "pairs", "negatives": 2, "truncation": "error"}
    assert refusal(path, source, max_length=9) == (
        f"data 'mine', row 3 of {path}: a text has {PLAIN.count_tokens(long)} tokens and the "
        "recipe's maximum is 9: shorten it, raise max_length, or choose truncation: truncate or "
        "windows"
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
    encoder = BOS if bos else PLAIN
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
    corpus = loaded(str(folder), {"truncation": "windows"}, encoder, max_length=size)
    assert list(zip(corpus.rows["text"], corpus.rows["row"], strict=True)) == expected
    assert corpus.num_truncated == 0


def test_where_nothing_is_left_to_train_on(jsonl: Any) -> None:
    path = jsonl([{"text": "a"}, {"text": "b"}])
    message = refusal(path, {"truncation": "windows"})
    assert message == f"data 'mine': no text of {path} has two tokens or more"
    message = refusal(path, evaluation={"held_out": 1})
    assert message == "data 'mine' has no rows to train on: give it more"


def test_prompts_stand_before_pairs(jsonl: Any) -> None:
    """And before no other texts."""
    rows = [{"query": "what?", "document": "that", "negatives": ["this", "left out"]}]
    prompts = {"query": "query: ", "document": "passage: "}
    corpus = loaded(jsonl(rows), {"kind": "pairs", "negatives": 1}, BOS, prompts=prompts)
    wanted = [e.ids for e in BOS.encode(["query: what?", "passage: that", "passage: this"])]
    assert corpus.rows[0] == {
        "query": wanted[0], "document": wanted[1], "negatives": [wanted[2]], "row": 1,
    }  # fmt: skip
    corpus = loaded(jsonl([{"text": "plain"}]), encoder=BOS, prompts=prompts)
    assert corpus.rows["text"] == [e.ids for e in BOS.encode(["plain"])]


def test_a_prompt_leaves_room_for_a_text(jsonl: Any) -> None:
    path, prompts = jsonl([{"query": "q", "document": "d"}]), {"query": "query: ", "document": ""}
    length = PLAIN.count_tokens("query: ")
    message = refusal(path, {"kind": "pairs"}, prompts=prompts, query_length=length)
    assert message.startswith(
        f"the prompt 'query: ' leaves no room for a text of {length} tokens: "
    )
    loaded(path, {"kind": "pairs"}, prompts=prompts, query_length=length + 1)


def test_queries_may_be_held_shorter(jsonl: Any) -> None:
    long = "far too long " * 5
    path = jsonl([{"query": long, "document": long}])
    lengths = {}
    for short in (None, 3):
        corpus = loaded(path, {"kind": "pairs"}, max_length=7, query_length=short)
        lengths[short] = [len(corpus.rows[0][name]) for name in ("query", "document")]
    assert lengths == {None: [7, 7], 3: [3, 7]}


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_the_first_negatives_are_used(asked: int, jsonl: Any) -> None:
    pair, negatives = {"query": "q", "document": "d"}, [["a", "b", "c"], ["d", "e", "f"]]
    path = jsonl([{**pair, "negatives": own} for own in negatives])
    corpus = loaded(path, {"kind": "pairs", "negatives": asked})
    found = [[PLAIN.decode(n) for n in row] for row in corpus.rows["negatives"]]
    assert found == [own[:asked] for own in negatives]


@pytest.mark.parametrize(
    "own", ["real", ["", "real"], [None, "real"], [" \n", "real", "more"]], ids=repr
)
def test_negatives_are_passed_over_unless_they_are_texts(own: Any, jsonl: Any) -> None:
    """What has no tokens has no vector, and would end the run at its step."""
    path = jsonl([{"query": "q", "document": "d", "negatives": own}])
    corpus = loaded(path, {"kind": "pairs", "negatives": 1})
    assert [PLAIN.decode(n) for n in corpus.rows[0]["negatives"]] == ["real"]


@pytest.mark.parametrize(
    ("kind", "first", "second"), [("summary", "text", "summary"), ("prompt", "prompt", "answer")]
)
def test_suffixes_stand_behind_texts(kind: str, first: str, second: str, jsonl: Any) -> None:
    """Nothing is put around them, and both are bounded."""
    path = jsonl([{first: "The text.", second: "A suffix."}, {first: "a", second: "b" * 40}])
    corpus = loaded(path, {"kind": kind}, BOS, max_length=20)
    assert set(corpus.rows.column_names) == {"text", "suffix", "row"}
    assert corpus.rows[0]["text"] == BOS.encode(["The text."])[0].ids
    assert corpus.rows[0]["text"][0] == 0
    assert corpus.rows[0]["suffix"] == BOS.encode_continuation("A suffix.")
    assert len(corpus.rows[1]["suffix"]) == 20
    assert corpus.num_truncated == 1


def test_text_never_becomes_a_special_token(jsonl: Any) -> None:
    corpus = loaded(jsonl([{"text": "<s></s><pad>"}]), encoder=BOS)
    assert [token for token in corpus.rows[0]["text"] if token < 5] == [0]


# -- held out ----------------------------------------------------------------------------------


def split(path: str, **evaluation: Any) -> tuple[list[str], list[str]]:
    """(held out, kept) texts."""
    corpus = loaded(path, evaluation=evaluation)
    return list(corpus.held_out["text"]), texts_of(corpus)


@settings(max_examples=15)
@given(
    numbers=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    share=st.floats(0, 0.6),
    order=st.randoms(use_true_random=False),
)
@example(numbers=[1] * 40, share=0.1, order=random.Random(0))
@example(numbers=[*range(4)] * 10, share=0.3, order=random.Random(0))
def test_held_out_texts_are_in_no_row_that_trains(
    numbers: list[int], share: float, order: Any, request: pytest.FixtureRequest
) -> None:
    """Equal texts stay together, no more is held out than asked for, whatever rows' order."""
    jsonl = request.getfixturevalue("jsonl")
    texts = [f"text {number}" for number in numbers]
    held_out, kept = split(jsonl([{"text": t} for t in texts]), held_out=share)
    assert sorted(held_out + kept) == sorted(texts)
    assert not set(held_out) & set(kept)
    assert len(held_out) <= share * len(texts)
    order.shuffle(texts)
    again = split(jsonl([{"text": t} for t in texts]), held_out=share)
    assert [sorted(part) for part in again] == [sorted(held_out), sorted(kept)]


@pytest.mark.parametrize(
    ("share", "max_rows", "expected"), [(0.1, 500, 10), (0.5, 20, 20), (0.009, 500, 0), (0.5, 0, 0)]
)
def test_held_out_rows_are_so_many(share: float, max_rows: int, expected: int, jsonl: Any) -> None:
    path = jsonl([{"text": f"text {number}"} for number in range(100)])
    held_out, kept = split(path, held_out=share, max_rows=max_rows)
    assert (len(held_out), len(kept)) == (expected, 100 - expected)


def test_held_out_rows_do_not_depend_on_the_run(jsonl: Any) -> None:
    """So that runs of other settings are measured on the same rows."""
    path = jsonl([{"text": f"text {number}"} for number in range(40)])
    evaluation = {"held_out": 0.2}
    one = loaded(path, evaluation=evaluation)
    other = loaded(path, evaluation=evaluation, seed=7, max_length=3, scope="full")
    assert one.held_out["row"] == other.held_out["row"]
    assert len(one.held_out) == 8


def test_held_out_pairs_keep_their_texts(jsonl: Any) -> None:
    rows = [{"query": f"q{number}", "document": f"d{number}"} for number in range(20)]
    prompts = {"query": "query: ", "document": ""}
    corpus = loaded(jsonl(rows), {"kind": "pairs"}, evaluation={"held_out": 0.25}, prompts=prompts)
    assert len(corpus.held_out) == 5
    for row in corpus.held_out:
        assert {name: row[name] for name in ("query", "document")} == rows[row["row"] - 1]
    assert sorted([*corpus.held_out["row"], *corpus.rows["row"]]) == list(range(1, 21))


@pytest.mark.parametrize(
    ("kind", "columns", "evaluation"),
    [
        ("summary", ("text", "summary"), {}),
        ("prompt", ("prompt", "answer"), {}),
        ("text", ("text",), {"data": {"test": {"path": "other.jsonl"}}}),
    ],
)
def test_nothing_is_held_out_that_is_not_measured(
    kind: str, columns: tuple[str, ...], evaluation: Any, jsonl: Any
) -> None:
    path = jsonl([dict.fromkeys(columns, f"text {number}") for number in range(20)])
    corpus = loaded(path, {"kind": kind}, evaluation={"held_out": 0.5, **evaluation})
    assert (len(corpus.held_out), len(corpus.rows)) == (0, 20)


# -- data to measure on ------------------------------------------------------------------------


def test_sources_are_read_as_texts(jsonl: Any) -> None:
    rows = [{"frage": "q", "document": "d"}, {"frage": "r", "document": "e"}]
    german: Any = {"kind": "pairs", "columns": {"query": "frage"}}
    found = read_source("mine", Source(path=jsonl(rows), **german))
    assert (found["query"], found["document"], found["row"]) == (["q", "r"], ["d", "e"], [1, 2])
    path = jsonl([*rows, {"frage": "", "document": "f"}])
    with pytest.raises(InputError, match="data 'mine', row 3 of "):
        read_source("mine", Source(path=path, **german))


def test_a_recipes_data_is_read_whole(jsonl: Any) -> None:
    """Every source in order, with what is held out of each."""
    texts = [{"text": f"text {number}"} for number in range(20)]
    pairs = [{"query": f"q{number}", "document": f"d{number}"} for number in range(20)]
    data = {"one": {"path": jsonl(texts)}, "other": {"path": jsonl(pairs), "kind": "pairs"}}
    corpora, measured = load_data(recipe(data=data, evaluation={"held_out": 0.2}), PLAIN)
    assert [(c.name, len(c.rows)) for c in corpora] == [("one", 16), ("other", 16)]
    found = [(m.name, m.kind, len(m.rows)) for m in measured]
    assert found == [("one", "text", 4), ("other", "pairs", 4)]
    assert measured[0].rows is corpora[0].held_out


@pytest.mark.parametrize(("max_rows", "expected"), [(3, 3), (500, 20)])
def test_data_to_measure_on_takes_the_place_of_held_out_rows(
    max_rows: int, expected: int, jsonl: Any
) -> None:
    texts = jsonl([{"text": f"text {number}"} for number in range(20)])
    pairs = jsonl([{"query": f"q{number}", "document": f"d{number}"} for number in range(20)])
    data = {"test": {"path": pairs, "kind": "pairs"}}
    evaluation = {"held_out": 0.5, "max_rows": max_rows, "data": data}
    made = recipe(data={"texts": {"path": texts}}, evaluation=evaluation)
    [corpus], [measured] = load_data(made, PLAIN)
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
    columns: list[dict[str, Any]] = [
        {}, {"suffix": [[4], [5]]}, {"suffix": [[4], [6]]}, {"negatives": [[[4]], [[5]]]},
        {"negatives": [[[4]], [[6]]]}, {"vector": [[0.5], [0.25]]}, {"vector": [[0.5], [0.5]]},
    ]  # fmt: skip
    hashes = {in_memory([[1, 2], [3]], **own).hash() for own in columns}
    assert len(hashes) == len(columns)


def test_hashes_stay_what_they_were() -> None:
    """Else runs that older releases began could not be resumed."""
    columns = {
        "query": [[1, 2], [3]],
        "document": [[4], [5, 6]],
        "negatives": [[[7]], [[8, 9]]],
        "row": [1, 2],
    }
    rows = datasets.Dataset.from_dict(columns)
    pairs = Corpus("mine", Source(kind="pairs"), rows, rows.select([]), 0)
    assert pairs.hash() == "1dcd326bab795d40"


def test_rows_that_were_chosen_hash_as_they_are() -> None:
    """Whatever lies beside them in memory."""
    whole = in_memory([[1, 2], [3], [4, 5], [6]])
    for indices, texts in (([1, 2], [[3], [4, 5]]), ([3, 0], [[6], [1, 2]])):
        chosen = dataclasses.replace(whole, rows=whole.rows.select(indices))
        direct = in_memory(texts)
        rows = direct.rows.remove_columns("row").add_column("row", [i + 1 for i in indices])
        assert chosen.hash() == dataclasses.replace(direct, rows=rows).hash()


def test_the_hash_depends_on_the_tokens_alone(jsonl: Any, new_path: Any) -> None:
    """Else a run could not be resumed after its data was copied, or its cache was lost."""
    rows = [{"text": text} for text in TEXTS]
    path = jsonl(rows)
    first = loaded(path).hash()
    assert len(first) == 16
    assert loaded(path, trainer={"bf16": True}).hash() == first
    assert loaded(str(shutil.copyfile(path, new_path(".jsonl")))).hash() == first
    os.utime(path, (1e9, 1e9))
    assert loaded(path).hash() == first
    for others in ([*rows[:5], {"text": f"{TEXTS[5]}!"}], rows[::-1]):
        assert loaded(jsonl(others)).hash() != first


# -- a teacher's vectors -----------------------------------------------------------------------


class Teacher:
    """Stands for a sentence-transformers model: a vector of a text's length and first letter."""

    def __init__(self, name: str = "") -> None:
        if name == "other/teacher":
            raise OSError(f"{name} is not there\nand a long explanation")
        self.seen: list[str] = []

    def encode(self, texts: list[str], *, convert_to_numpy: bool) -> np.ndarray:
        assert convert_to_numpy
        self.seen += texts
        return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float64)


@pytest.fixture
def _teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the library, which takes seconds to import."""
    stub = SimpleNamespace(SentenceTransformer=Teacher)
    monkeypatch.setitem(sys.modules, "sentence_transformers", stub)


def test_a_teacher_sees_what_the_student_reads(jsonl: Any) -> None:
    """Cut, and behind the prompt."""
    rows = [{"query": "what?", "document": "a long document"}, {"query": "q", "document": "d"}]
    prompts = {"query": "? ", "document": ""}
    before = loaded(jsonl(rows), {"kind": "pairs"}, max_length=9, prompts=prompts)
    teacher = Teacher()
    after = add_teacher_vectors(before, teacher, PLAIN)
    documents = texts_of(before, "document")
    assert teacher.seen == ["? what?", "? q", *documents]
    assert documents[0] != "a long document"
    assert after.rows["query_vector"] == [[7.0, ord("?")], [3.0, ord("?")]]
    assert after.rows["document_vector"] == [[len(t), ord(t[0])] for t in documents]
    assert after.rows["query"] == before.rows["query"]
    assert (after.name, after.source, after.num_truncated) == (
        before.name,
        before.source,
        before.num_truncated,
    )
    assert after.hash() != before.hash()


@pytest.mark.parametrize("own", [{}, {"vector": [1.0]}], ids=str)
def test_a_teacher_of_running_text(own: Any, jsonl: Any) -> None:
    """Its vectors take the place of the data's."""
    corpus = add_teacher_vectors(loaded(jsonl([{"text": "hello", **own}])), Teacher(), PLAIN)
    assert corpus.rows["vector"] == [[5.0, ord("h")]]
    assert set(corpus.rows.column_names) == {"text", "row", "vector"}


def test_a_teacher_reads_only_what_is_drawn_and_equal_texts_once(jsonl: Any) -> None:
    rows = [{"query": f"q{i}", "document": f"d{i // 4}"} for i in range(20)]
    data = {"pairs": {"path": jsonl(rows), "kind": "pairs"}}
    schedule = {"batch": 2, "steps": 3, "contrastive_from": 0}
    taught = recipe(data=data, contrastive={"teacher": "mine"}, schedule=schedule, next_token=None)
    corpora, _ = load_data(taught, PLAIN)
    drawn = rows_drawn(taught, corpora)["pairs"]
    assert len(drawn) == 6
    teacher = Teacher()
    corpus = add_teacher_vectors(corpora[0], teacher, PLAIN, drawn)
    found = [row for row, vector in enumerate(corpus.rows["query_vector"]) if vector is not None]
    assert found == list(drawn)
    read = [corpora[0].rows[int(row)] for row in drawn]
    documents = dict.fromkeys(PLAIN.decode(row["document"]) for row in read)
    assert len(documents) < 6
    assert teacher.seen == [*(PLAIN.decode(row["query"]) for row in read), *documents]
    assert teacher_dim([corpus]) == 2
    steps = StepDataset(taught, [corpus])
    for batch in (steps[step] for step in range(3)):
        assert batch.contrast.teacher is not None


@pytest.mark.parametrize("teacher", [Teacher(), None], ids=["model", "columns"])
def test_what_the_contrastive_loss_does_not_read_gets_no_vectors(teacher: Any, jsonl: Any) -> None:
    corpus = loaded(jsonl([{"text": "hello", "summary": "hi"}]), {"kind": "summary"})
    assert add_teacher_vectors(corpus, teacher, PLAIN).rows.column_names == corpus.rows.column_names


@pytest.mark.usefixtures("_teachers")
def test_a_teacher_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as error:
        load_teacher("other/teacher")
    assert str(error.value) == (
        "teacher 'other/teacher' cannot be loaded: other/teacher is not there"
    )
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match="a teacher needs sentence-transformers: pip install "):
        load_teacher("some/teacher")


def test_vectors_may_be_in_the_data(jsonl: Any) -> None:
    rows = [
        {"query": "q", "document": "d", "qv": [1.0, 0.0], "document_vector": [0.0, 1.0]},
        {"query": "r", "document": "e", "qv": [0.5, 0.5], "document_vector": [0.5, 0.25]},
    ]
    source = {"kind": "pairs", "columns": {"query_vector": "qv"}}
    before = loaded(jsonl(rows), source)
    corpus = add_teacher_vectors(before, None, PLAIN)
    assert corpus == before
    assert corpus.rows["query_vector"] == [[1.0, 0.0], [0.5, 0.5]]
    assert corpus.rows["document_vector"] == [[0.0, 1.0], [0.5, 0.25]]


@pytest.mark.usefixtures("_teachers")
def test_a_recipes_teacher_is_used(jsonl: Any) -> None:
    rows = [{"text": "hello", "vector": [1.0]}]
    for name, vector in (("some/teacher", [5.0, ord("h")]), ("columns", [1.0]), (None, [1.0])):
        data = {"texts": {"path": jsonl(rows)}}
        taught = recipe(data=data, contrastive={"teacher": name}, schedule={"batch": 1})
        [corpus] = add_teacher(taught, load_data(taught, PLAIN)[0], PLAIN, Path())
        assert corpus.rows["vector"] == [vector]
    [corpus], _ = load_data(recipe(data={"texts": {"path": jsonl([{"text": "hello"}])}}), PLAIN)
    assert "vector" not in corpus.rows.column_names


@pytest.mark.parametrize(
    ("source", "row", "missing"),
    [
        ({}, {}, "'vector' of a teacher's vectors: add it"),
        # A vector of a whole text is none of its pieces.
        (
            {"truncation": "windows"},
            {"vector": [1.0]},
            "'vector' of a teacher's vectors (pieces of",
        ),
        ({"kind": "pairs"}, {"query_vector": [1.0]}, "'document_vector'"),
        ({"kind": "pairs"}, {"document_vector": [1.0]}, "'query_vector'"),
    ],
)
def test_missing_vectors_are_named(source: Any, row: Any, missing: str, jsonl: Any) -> None:
    corpus = loaded(jsonl([{"text": "hello", "query": "q", "document": "d", **row}]), source)
    with pytest.raises(InputError) as error:
        add_teacher_vectors(corpus, None, PLAIN)
    assert str(error.value).startswith(f"data 'mine' has no column {missing}")


@pytest.mark.parametrize(
    ("vectors", "row", "length"),
    [
        ([[1.0, 2.0], [1.0]], 2, "2"), ([[1.0, 2.0], None], 2, "2"),
        ([[1.0, 2.0], [1.0, math.nan]], 2, "2"), ([[1.0, 2.0], [math.inf, 1.0]], 2, "2"),
        ([[1.0, 2.0], [None, 1.0]], 2, "2"), ([[], []], 1, "any"),
        (["x", "x"], 1, "any"), ([5.0, 5.0], 1, "any"), ([[[1.0]], [[2.0]]], 1, "any"),
    ],
    ids=str,
)  # fmt: skip
def test_vectors_that_do_not_fit_are_named_by_their_row(
    vectors: list[Any], row: int, length: str, jsonl: Any
) -> None:
    path = jsonl([{"text": "t", "vector": vector} for vector in vectors])
    with pytest.raises(InputError) as error:
        add_teacher_vectors(loaded(path), None, PLAIN)
    assert str(error.value) == (
        f"data 'mine', row {row}: 'vector' is no vector of {length} finite numbers"
    )
