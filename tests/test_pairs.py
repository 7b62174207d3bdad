"""Pairs of documents: queries from structure and from a model, filters, negatives, files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import FakeGem

from gem_rag.cli import main
from gem_rag.errors import InputError
from gem_rag.model import Gem
from gem_rag.pairs import questions, writing
from gem_rag.pairs.filters import says_something, without_duplicates
from gem_rag.pairs.kinds import KINDS
from gem_rag.pairs.make import held_out_file, make_pairs, refresh_negatives
from gem_rag.pairs.negatives import mine_negatives
from gem_rag.pairs.pair import Pair, read_pairs, write_pairs
from gem_rag.pairs.passages import Passage, read_passages
from gem_rag.pairs.searchers import Found, ModelSearcher, bm25, found_again
from gem_rag.pairs.settings import PairSettings
from gem_rag.pairs.structure import structure_pairs
from gem_rag.pairs.writing import UnusableQuestionsError, write_questions

MANUAL = """# The pump

## 1.2. Priming `fast`

Fill the [housing](x.html) with water before the first start. A dry pump destroys its own seal in
less than a minute of running, and the warranty does not cover it.

## Cleaning

Open the drain and rinse the filter under running water until nothing comes off any more.

# The heater

## Cleaning

* Let the element cool down for an hour. Wipe the scale off with vinegar and a soft brush only.

## Notes

Short.
"""
FACTS = {
    "pump": "The pump moves water from the well to the tank with a force of nine bar.",
    "heater": "The heater warms the tank at night, when electricity costs less than by day.",
    "valve": "The valve closes by itself as soon as the pressure falls below two bar.",
    "filter": "The filter keeps sand out of the pipes and has to be rinsed every month.",
    "sensor": "The sensor measures how warm the water is and tells the display once a second.",
    "display": "The display shows the pressure, and flashes red while something is wrong.",
}


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    file = tmp_path / "docs" / "manual.md"
    file.parent.mkdir()
    file.write_text(MANUAL)
    return file


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """A folder of six one-section documents."""
    folder = tmp_path / "facts"
    folder.mkdir()
    for name, text in FACTS.items():
        (folder / f"{name}.md").write_text(f"# The {name} of the house\n\n{text}\n")
    return folder


def passages_of(*paths: Path, tokens: int = 64, context: int = 0) -> list[Passage]:
    return read_passages(paths, FakeGem().tokenizer, tokens, context)


# -- structure ---------------------------------------------------------------------------------


def test_headings_and_first_sentences_ask_for_the_text_below_them(manual: Path) -> None:
    pairs = list(structure_pairs(passages_of(manual)))
    assert [(pair.kind, pair.query) for pair in pairs] == [
        ("heading", "Priming fast"),
        ("summary", "Fill the housing with water before the first start."),
        ("heading", "The pump: Cleaning"),  # there are two of these
        ("heading", "The heater: Cleaning"),
    ]
    assert pairs[0].document.startswith("Fill the [housing]")
    assert pairs[1].document.startswith("A dry pump destroys")
    assert pairs[0].section.endswith("manual.md > The pump > 1.2. Priming fast")
    assert not any("Priming" in pair.document for pair in pairs)


def test_a_title_asks_for_the_beginning_of_a_document_without_headings(tmp_path: Path) -> None:
    (tmp_path / "memo.txt").write_text("Water in the house\n\n" + FACTS["pump"])
    [pair] = structure_pairs(passages_of(tmp_path))
    assert (pair.kind, pair.query) == ("title", "Water in the house")


def test_pairs_know_what_an_index_reads_before_their_text(manual: Path, tmp_path: Path) -> None:
    passages = passages_of(manual, context=120)
    chunks = [passage.chunk for passage in passages]
    assert len(chunks) > 2
    for number, passage in enumerate(passages):
        before = "\n\n".join(chunks[:number])
        assert before.endswith(passage.context)
        assert passage.context or not number
    pairs = list(structure_pairs(passages))
    contexts = {passage.context for passage in passages}
    assert {pair.context for pair in pairs} <= contexts
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
    alone = [dataclasses.replace(pair, context="") for pair in pairs]
    write_pairs(tmp_path / "pairs.jsonl", alone)
    assert "context" not in (tmp_path / "pairs.jsonl").read_text()
    assert read_pairs(tmp_path / "pairs.jsonl") == alone


def test_nothing_to_read_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"found nothing to read in .*empty: give documents"):
        passages_of(tmp_path / "empty")


# -- filters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("How do I prime the pump?", True),
        ("keep program running", True),
        ("What is the main purpose of this?", False),
        ("What does the text say about pumps and seals?", False),
        ("How is the pump primed in the following example?", False),
        ("Why is it used?", False),
        ("What is a seal?", False),  # one word that says something
    ],
)
def test_a_query_says_something_by_itself(query: str, says: bool) -> None:
    assert says_something(query) is says


def test_a_heading_may_be_one_word() -> None:
    assert says_something("Cleaning", least=1)
    assert not says_something("About this", least=1)


def pair(query: str, document: str, section: str = "", kind: str = "why") -> Pair:
    return Pair(query, document, kind, "file", section or document)


def test_the_same_words_ask_once_for_a_document() -> None:
    asked = [pair("Why rinse?", "a"), pair("why  RINSE", "a"), pair("Why rinse?", "b")]
    assert list(without_duplicates(asked)) == [asked[0], asked[2]]


def test_the_round_trip_keeps_what_any_searcher_finds() -> None:
    documents = list(FACTS.values())
    queries = ["force of the pump in bar", "electricity at night", "nothing like it anywhere"]

    def wrong(queries: Sequence[str], documents: Sequence[str], depth: int) -> Found:
        rows = np.full((len(queries), depth), 5)
        return Found(rows, np.ones_like(rows, np.float32))

    assert found_again(queries, documents, [0, 1, 3], [bm25], 1) == [True, True, False]
    assert found_again(queries, documents, [0, 2, 5], [bm25, wrong], 1) == [True, False, True]
    assert found_again([], documents, [], [bm25], 1) == []


def test_a_model_finds_by_cosine() -> None:
    gem: Any = FakeGem()
    gem.embed_documents = lambda texts, **options: gem.embed_queries(texts)
    embed = gem.embed_queries
    gem.embed_queries = lambda texts, **options: embed(texts)
    documents = list(FACTS.values())
    found = ModelSearcher(gem)(documents[:2], documents, 3)
    assert found.rows[:, 0].tolist() == [0, 1]
    assert found.scores[:, 0] == pytest.approx([1, 1], abs=1e-5)
    assert (np.diff(found.scores, axis=1) <= 0).all()


# -- negatives ---------------------------------------------------------------------------------


def ranked(order: Sequence[int], scores: Sequence[float]) -> Any:
    """A searcher that finds the same for every query."""

    def search(queries: Sequence[str], documents: Sequence[str], depth: int) -> Found:
        rows = np.tile(np.array(order[:depth]), (len(queries), 1))
        return Found(rows, np.tile(np.array(scores[:depth], np.float32), (len(queries), 1)))

    return search


def test_negatives_come_from_the_named_ranks_and_do_not_score_like_the_right_one() -> None:
    pairs = [pair(f"query {number}", f"document {number}") for number in range(8)]
    search = ranked([1, 2, 0, 3, 4, 5, 6, 7], [1.0, 0.99, 0.9, 0.88, 0.85, 0.8, 0.7, 0.6])
    settings = PairSettings(negatives=2, first_rank=2, last_rank=6)
    # Of rank 2 to 6, at most .95 x .9: documents 4 (.85) and 5 (.8).
    mined = mine_negatives(pairs, [search], settings)[0]
    assert sorted(mined.negatives) == ["document 4", "document 5"]
    # Two searchers are united: the other one has 6 and 7 there.
    other = ranked([0, 6, 7, 1, 2, 3, 4, 5], [1.0, 0.9, 0.8] + [0.99] * 5)
    settings = PairSettings(negatives=4, first_rank=2, last_rank=6)
    mined = mine_negatives(pairs, [search, other], settings)[0]
    assert sorted(mined.negatives) == [f"document {n}" for n in (4, 5, 6, 7)]


def test_no_negative_answers_too() -> None:
    """Not of the same section, not the answer to the same words, not the same text."""
    pairs = [
        pair("why rinse", "sand", "filter"),
        pair("how often", "every month", "filter"),
        pair("Why rinse?", "taste", "water"),
        pair("what is red", "the display", "display"),
        pair("what closes", "the valve", "valve"),
    ]
    search = ranked([0, 1, 2, 3, 4], [1.0, 0.5, 0.5, 0.5, 0.5])
    settings = PairSettings(negatives=7, first_rank=1, last_rank=10, round_trip=1)
    mined = mine_negatives(pairs, [search], settings)
    assert sorted(mined[0].negatives) == ["the display", "the valve"]
    assert sorted(mined[3].negatives) == ["every month", "sand", "taste", "the valve"]


def test_others_fill_up_where_too_few_are_hard_and_every_run_draws_the_same() -> None:
    pairs = [pair(f"query {number}", f"document {number}") for number in range(30)]
    search = ranked(list(range(30)), [1 - n / 30 for n in range(30)])
    settings = PairSettings(negatives=3, first_rank=29, last_rank=30)
    mined = mine_negatives(pairs, [search], settings)
    for one in mined[:28]:
        assert len({*one.negatives, one.document}) == 4
    assert mined == mine_negatives(pairs, [search], settings)
    assert mined != mine_negatives(pairs, [search], PairSettings(
        negatives=3, first_rank=29, last_rank=30, seed=1))  # fmt: skip


# -- questions ---------------------------------------------------------------------------------


class Writer(FakeGem):
    """Writes a question about the passage of each prompt."""

    def __init__(self, answer: str = "", fails_after: int | None = None) -> None:
        super().__init__()
        self.calls: list[list[str]] = []
        self._answer, self._left = answer, fails_after

    def tokenize(self, text: str) -> Any:
        return text.split()

    def generate(self, prompts: Sequence[Any], *, seed: int, **options: Any) -> list[Any]:
        if self._left is not None and len(self.calls) >= self._left:
            raise KeyboardInterrupt
        assert options["schema"] == questions.SCHEMA
        self.calls.append([" ".join(prompt) for prompt in prompts])
        return [SimpleNamespace(text=self._text(p, seed + i)) for i, p in enumerate(prompts)]

    def _text(self, prompt: Sequence[str], seed: int) -> str:
        if self._answer:
            return self._answer
        about = prompt[len(prompt) - 1 - prompt[::-1].index("Text:") :]
        words = Random(seed).sample([word for word in about if len(word) > 3], 4)
        return json.dumps({"question": " ".join(words)})


SETTINGS = PairSettings(questions=3, batch=4, negatives=2)


def test_questions_of_all_kinds_take_turns(facts: Path, tmp_path: Path) -> None:
    writer: Any = Writer()
    written = write_questions(writer, passages_of(facts), SETTINGS, tmp_path / "state")
    assert len(written) == 18
    assert [one.kind for one in written[:6]] == [
        "how-to", "why", "error", "definition", "keywords", "how-to",
    ]  # fmt: skip
    assert [len(call) for call in writer.calls] == [4, 4, 4, 4, 2]
    assert "asks for a reason" in writer.calls[0][1]
    assert written[0].document == passages_of(facts)[0].chunk
    fewer = PairSettings(questions=3, max_questions=5)
    assert len(write_questions(writer, passages_of(facts), fewer, tmp_path / "state")) == 5


def test_an_interrupted_run_goes_on_where_it_was(facts: Path, tmp_path: Path) -> None:
    passages, whole, broken = passages_of(facts), tmp_path / "whole", tmp_path / "broken"
    wanted = write_questions(Writer(), passages, SETTINGS, whole)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        write_questions(Writer(fails_after=2), passages, SETTINGS, broken)  # type: ignore[arg-type]
    [file] = broken.iterdir()
    with file.open("a") as handle:
        handle.write('"a whole line of a batch that was cut off"\n"{\\"quest')
    again: Any = Writer()
    assert write_questions(again, passages, SETTINGS, broken) == wanted
    assert [len(call) for call in again.calls] == [4, 4, 2]
    # Other settings or documents begin anew and keep what there is.
    other: Any = Writer()
    write_questions(other, passages[:3], SETTINGS, broken)
    assert sum(map(len, other.calls)) == 9
    assert write_questions(again, passages, SETTINGS, broken) == wanted
    assert len(again.calls) == 3


@pytest.mark.parametrize(
    "answer",
    [
        '{"question": "unfinished',
        '{"question": "What is this about?"}',
        '{"question": "Why does a program stop when its terminal is closed?"}',  # the example
    ],
)
def test_a_model_that_writes_nothing_usable_says_so_with_samples(
    answer: str, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_TRIAL", 8)
    writer: Any = Writer(answer)
    with pytest.raises(UnusableQuestionsError, match=r"\(0 of 8 answers\)") as caught:
        write_questions(writer, passages_of(facts), SETTINGS, tmp_path / "state")
    assert len(writer.calls) == 2
    assert str(caught.value).count(repr(answer)) == 3
    assert "take a larger model to write questions, or set questions to 0" in str(caught.value)


def test_a_passage_longer_than_the_context_is_shortened(facts: Path, tmp_path: Path) -> None:
    writer: Any = Writer()
    least = len(questions.prompt_for(writer, "", "error"))
    writer.context_length = least + 8 + questions.MAX_TOKENS
    write_questions(writer, passages_of(facts), PairSettings(questions=1), tmp_path / "state")
    lengths = [len(prompt.split()) for call in writer.calls for prompt in call]
    assert max(lengths) <= least + 8


def test_a_base_without_a_chat_template_gets_an_example() -> None:
    prompt = " ".join(questions.prompt_for(Writer(), FACTS["pump"], "definition"))  # type: ignore[arg-type]
    assert prompt.count("Text:") == 2
    assert prompt.endswith("Question (" + KINDS["definition"][0] + "):")
    assert FACTS["pump"] in prompt


def test_a_chat_model_is_asked_in_its_own_form(gem: Gem) -> None:
    prompt = gem.hf_tokenizer.decode(questions.prompt_for(gem, FACTS["pump"], "why"))
    assert prompt.count("<|im_start|>user") == 2
    assert json.dumps({"question": KINDS["why"][1]}) in prompt
    assert prompt.endswith("<|im_start|>assistant\n")


# -- the whole way -----------------------------------------------------------------------------


def test_pairs_of_a_folder_and_their_card(facts: Path, tmp_path: Path, gem: Gem) -> None:
    out = tmp_path / "made" / "pairs.jsonl"
    made = make_pairs([facts], gem, out, PairSettings(questions=0, negatives=3))
    pairs = read_pairs(out)
    assert made.pairs == len(pairs) == 6
    assert made.kinds == {"heading": 6}
    for one in pairs:
        name = one.query.split()[1]
        assert one.document == FACTS[name]
        assert len({*one.negatives, one.document}) == 4
    card = out.with_suffix(".md").read_text()
    for words in ("6 pairs of a query", "| heading | 6 |", '"negatives": 3', gem.fingerprint):
        assert words in card
    assert not held_out_file(out).exists()


def test_a_model_that_cannot_write_leaves_pairs_from_structure(
    facts: Path, tmp_path: Path, talker: Gem
) -> None:
    said: list[str] = []
    settings = PairSettings(questions=1, negatives=0)
    made = make_pairs([facts], talker, tmp_path / "pairs.jsonl", settings, notice=said.append)
    assert made.kinds == {"heading": 6}
    [line] = [line for line in said if line.startswith("pairs from structure only, since")]
    assert "context of 256 tokens is too short to ask it for questions" in line


def test_questions_that_do_not_find_their_passage_are_counted(
    facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gem: Gem
) -> None:
    texts = ["force of nine bar", "nothing like it anywhere", "how is the it", "sand in the pipes"]
    answers = iter(json.dumps({"question": text}) for text in [texts[0], *texts[1:3], texts[3]] * 2)
    monkeypatch.setattr(writing, "_write", lambda gem, jobs, *rest: [next(answers) for _ in jobs])
    settings = PairSettings(questions=1, search="bm25", round_trip=1, negatives=1, last_rank=5)
    made = make_pairs([facts], gem, tmp_path / "pairs.jsonl", settings)
    # Of "display, filter, heater, pump, sensor, valve", none is asked for what its text says.
    assert made.dropped["says nothing"] == 1
    assert made.dropped["does not find its passage"] == 5


def test_held_out_sections_are_nowhere_in_the_pairs(facts: Path, tmp_path: Path, gem: Gem) -> None:
    out = tmp_path / "pairs.jsonl"
    make_pairs([facts], gem, out, PairSettings(questions=0, held_out=0.4, negatives=2))
    pairs, held_out = read_pairs(out), read_pairs(held_out_file(out))
    asked = {one.document for one in held_out if one.query}
    assert asked
    assert {one.document for one in held_out} == set(FACTS.values())
    assert asked.isdisjoint(text for one in pairs for text in (one.document, *one.negatives))


def test_negatives_are_mined_again_with_another_model(
    facts: Path, tmp_path: Path, gem: Gem
) -> None:
    out = tmp_path / "pairs.jsonl"
    make_pairs([facts], gem, out, PairSettings(questions=0, negatives=1))
    again = tmp_path / "again.jsonl"
    settings = PairSettings(negatives=4, search="model", seed=3)
    made = refresh_negatives(out, gem, again, settings)
    assert made.negatives == {4: 6}
    assert [one.query for one in read_pairs(again)] == [one.query for one in read_pairs(out)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"questions": 6}, "questions must be from 0 to 5, not 6"),
        ({"negatives": 8}, "negatives must be from 0 to 7, not 8"),
        ({"kinds": ("whi",)}, r"there is no kind of question 'whi' \(did you mean 'why'\?\)"),
        ({"kinds": ()}, "kinds names no kind of question"),
        ({"search": "google"}, "search must be one of auto, bm25, model, both"),
        ({"first_rank": 101}, "first_rank must be from 1 to 100"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PairSettings(**settings)


def test_files_that_are_not_of_pairs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "a", "document": "b"}\n')
    with pytest.raises(InputError, match=r"a.jsonl, line 1: make-pairs did not write this"):
        read_pairs(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="there is no file"):
        read_pairs(tmp_path / "b.jsonl")


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as exit:
        main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return exit.value.code, captured.out, captured.err


def test_the_command(
    facts: Path, tmp_path: Path, trained_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs.jsonl"
    made = ("make-pairs", facts, "--model", trained_folder, "--out", out, "--questions", 0)
    code, printed, said = run_cli(capsys, *made, "--negatives", 2)
    assert not code, said
    assert "6 pairs in pairs.jsonl (6 heading)" in printed
    assert "6 passages, 0 of them held out" in said
    code, _, said = run_cli(capsys, *made)
    assert (code, "exists already: choose another name" in said) == (2, True)
    again = ("--refresh", out, "--out", tmp_path / "b.jsonl")
    code, printed, _ = run_cli(capsys, "make-pairs", "--model", trained_folder, *again, "--json")
    assert json.loads(printed)["pairs"] == 6
    code, _, said = run_cli(capsys, "make-pairs", "--model", trained_folder, "--out", out)
    assert (code, "needs either files and folders, or --refresh" in said) == (2, True)
