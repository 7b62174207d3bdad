"""Sentences of documents, and answers made of them."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeGem
from helpers import run_out
from hypothesis import given
from hypothesis import strategies as st

import gem_rag
from gem_rag.documents.document import Chunk
from gem_rag.rag.answer import REFUSAL, answer, stream_answer
from gem_rag.rag.extracts import MOST, extract_sentences
from gem_rag.rag.hits import Hit
from gem_rag.rag.sentences import is_complete, passage_sentences
from gem_rag.rag.support import check_sentences


def sentences(text: str) -> list[str]:
    return [" ".join(text[start:stop].split()) for start, stop in passage_sentences(text)]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("A pump moves\nwater. It was\r\nold.", ["A pump moves water.", "It was old."]),
        ("Pumps\n=====\n\nA pump moves\nwater.", ["Pumps", "=====", "A pump moves water."]),
        ("# Pumps\nA pump moves water.", ["# Pumps", "A pump moves water."]),
        ("Of:\n- a rod\n  of steel\n2. a pipe", ["Of:", "- a rod of steel", "2. a pipe"]),
        ("| a | b |\n| 1 | 2 |\nA pump.", ["| a | b |", "| 1 | 2 |", "A pump."]),
        ("Use it, e.g. for\nwater at 3.5 bar.", ["Use it, e.g. for water at 3.5 bar."]),
        ('Both "!=" and f(a.B!c) work. So.', ['Both "!=" and f(a.B!c) work.', "So."]),
        ("水泵用来\n抽水。它很旧。", ["水泵用来 抽水。", "它很旧。"]),
        ("", []),
        (" \n\n ", []),
    ],
)  # fmt: skip
def test_a_line_that_ends_within_a_paragraph_ends_no_sentence(text: str, want: list[str]) -> None:
    assert sentences(text) == want


def test_a_log_without_full_stops_is_quoted_by_its_lines() -> None:
    lines = [f"{hour:02} pump started and moved {hour} litres" for hour in range(24)]
    assert sentences("\n".join(lines)) == lines


@given(st.text(st.sampled_from("aB1.!? \n\r\t\"'é月。-*#|=>\u2028\x0b")))
def test_sentences_hold_every_word_once_and_in_order(text: str) -> None:
    spans = list(passage_sentences(text))
    assert all(text[start:stop].strip() == text[start:stop] != "" for start, stop in spans)
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())
    assert [end for span in spans for end in span] == sorted(end for span in spans for end in span)


@pytest.mark.parametrize("whole", ["A pump.", 'It is "on!"', "**So?**", "水泵。", "पंप है।", "(A.)"])
def test_a_sentence_is_complete_with_its_full_stop(whole: str) -> None:
    assert is_complete(whole)
    assert not any(map(is_complete, ["For example:", "pump.start()", "| a | b |", "the pump", ""]))


def test_a_checked_sentence_cites_a_whole_one_of_a_wrapped_text() -> None:
    chunk = Chunk(
        "pumps", "", 10, 70, "A lamp gives light. A pump moves\nwater through long pipes."
    )
    [checked] = check_sentences("A pump moves water through pipes.", [chunk])
    assert checked.citation is not None
    assert checked.citation.quote == "A pump moves\nwater through long pipes."


# -- Answers made of them ----------------------------------------------------------------------


class Silent(FakeGem):
    """Embeds, and cannot write."""

    def __init__(self) -> None:
        super().__init__()
        self.config = gem_rag.GemConfig(answer_style="sentences")

    def generate(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be generated")

    stream = generate


def hit(text: str, source: str, title: str = "", score: float = 0.5) -> Hit:
    return Hit(Chunk(source, title, 100, 100 + len(text), text), score)


PUMPS = hit("A lamp gives light in the house.\nA pump moves water\nthrough pipes.", "pumps")
VALVES = hit("A pump moves water through pipes. A valve closes a pipe.", "valves")


def test_an_answer_of_sentences_quotes_the_nearest_and_generates_nothing() -> None:
    gem: Any = Silent()
    found = answer(gem, "What moves water through pipes?", [PUMPS, VALVES])
    assert found.text.startswith("A pump moves water through pipes. [1]")
    assert found.text.count("A pump moves water through pipes.") == 1  # the other says no more
    first = found.citations[0]
    assert (first.number, first.source) == (1, "pumps")
    assert first.quote == "A pump moves water\nthrough pipes."
    assert first.span == (133, 166)
    assert found.hits == [PUMPS, VALVES]
    assert found.usage == {}
    assert set(found.timings) == {"generate"}


def test_sentences_come_from_passages_within_the_margin() -> None:
    gem: Any = Silent()
    far = hit("What moves water through pipes? Nobody knows it.", "far", score=0.1)
    found = answer(gem, "What moves water through pipes?", [PUMPS, far], margin=0.2)
    assert {citation.source for citation in found.citations} == {"pumps"}
    assert found.hits == [PUMPS]


def test_a_streamed_answer_of_sentences_is_the_whole_one() -> None:
    gem: Any = Silent()
    pieces, streamed = run_out(stream_answer(gem, "What moves water?", [PUMPS]))
    whole = answer(gem, "What moves water?", [PUMPS])
    assert "".join(pieces) == whole.text == streamed.text
    assert streamed.citations == whole.citations


def test_without_passages_there_is_no_sentence() -> None:
    gem: Any = Silent()
    assert answer(gem, "What moves water?", []).text == REFUSAL
    assert run_out(stream_answer(gem, "What moves water?", []))[0] == [REFUSAL]
    blank = hit(" \n ", "blank")
    assert answer(gem, "What moves water?", [blank]).text == REFUSAL
    assert extract_sentences(gem, "What moves water?", []) == []


def test_fragments_around_code_are_not_quoted_where_there_are_sentences() -> None:
    gem: Any = Silent()
    text = "To move water the pump\n\n    pump.move(water, through=pipes)\n\nA pump moves water."
    assert answer(gem, "move water pump", [hit(text, "a")]).text == "A pump moves water. [1]"
    found = answer(gem, "move water pump", [hit(text.rpartition("A pump")[0], "a")])
    assert found.text == "To move water the pump [1]"


def test_a_passage_of_short_lines_alone_is_quoted_too() -> None:
    gem: Any = Silent()
    found = answer(gem, "pump", [hit("pump.start()\n\npump.stop()", "code")])
    assert found.citations
    assert len(found.citations) <= MOST


def test_a_real_index_answers_in_whole_sentences(tmp_path: Any) -> None:
    (tmp_path / "pumps.md").write_text(
        "# Pumps\n\nA pump moves water through long\npipes. It was built in 1851 by hand.\n"
    )
    with gem_rag.load("gem-tiny") as gem:
        index = gem_rag.Index.open(tmp_path / "index", gem)
        index.sync([tmp_path / "pumps.md"])
        found = index.ask("What moves water?", style="sentences")
    quotes = [" ".join(citation.quote.split()) for citation in found.citations]
    assert set(quotes) <= {
        "A pump moves water through long pipes.", "It was built in 1851 by hand."
    }  # fmt: skip
    assert quotes
    assert found.text == " ".join(f"{quote} [1]" for quote in quotes)
    assert all(citation.place.startswith("line ") for citation in found.citations)


def test_what_no_passage_is_near_enough_to_is_refused_unless_it_is_asked_for(tmp_path: Any) -> None:
    gem: Any = Silent()
    gem.config = gem_rag.GemConfig(answer_style="sentences", answer_min_score=0.6)
    index = gem_rag.Index.open(tmp_path, gem)
    index.sync([gem_rag.Document("pumps", "A pump moves water through pipes.")])
    near, far = "A pump moves water through pipes.", "Who painted the ceiling?"
    assert index.ask(near).text == "A pump moves water through pipes. [1]"
    assert index.ask(far).text == REFUSAL
    assert index.ask(far).hits == []
    assert index.ask(far, min_score=None).text == REFUSAL
    assert index.ask(far, min_score=-1).text == "A pump moves water through pipes. [1]"
    assert gem_rag.Conversation(index).ask(far).text == REFUSAL
    assert index.search(far)  # a search has no least score of its own
