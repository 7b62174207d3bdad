"""Conversations over an index: follow-ups stand alone, answers stream, citations have places."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGem
from helpers import run_out
from hypothesis import given, settings
from hypothesis import strategies as st

import gem_rag
from gem_rag import cli
from gem_rag.core.config import GemConfig
from gem_rag.documents.document import Chunk
from gem_rag.errors import InputError
from gem_rag.generation.sampling import Generation
from gem_rag.model import Gem
from gem_rag.rag.answer import REFUSAL, Answer, answer, stream_answer
from gem_rag.rag.conversation import Conversation
from gem_rag.rag.hits import Hit
from gem_rag.rag.index import Index
from gem_rag.rag.rewriting import rewrite_question
from gem_rag.rag.sentences import split_sentences
from gem_rag.rag.support import SentenceChecker


class Talking(FakeGem):
    """Writes what it is told to, and remembers what it read; a token is a character.

    Answers are streamed three characters at a time, rewritten questions come whole.
    """

    def __init__(
        self,
        answers: Sequence[str] = (),
        rewritten: Sequence[str] = (),
        context: int = 4000,
        **config: Any,
    ) -> None:
        super().__init__()
        self.answers, self.rewritten = list(answers), list(rewritten)
        self.context_length = context
        self.config = GemConfig(**config)
        self.read_to_rewrite: list[str] = []
        self.read_to_answer: list[str] = []
        self.sampling: list[dict[str, Any]] = []
        self.closed = 0

    def tokenize(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def tokenize_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        return self.tokenize("".join(f"<{m['role']}>{m['content']}" for m in messages))

    def generate(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[Generation]:
        (prompt,) = prompts
        assert len(prompt) + sampling["max_tokens"] <= self.context_length
        self.read_to_rewrite.append("".join(map(chr, prompt)))
        self.sampling.append(sampling)
        text = self.rewritten.pop(0)
        text, cut = text.replace("...", "?"), text.endswith("...")
        return [Generation(text, (), "length" if cut else "stop", len(prompt))]

    def stream(self, prompt: Sequence[int], **sampling: Any) -> Generator[str, None, Generation]:
        assert len(prompt) + sampling["max_tokens"] <= self.context_length
        self.read_to_answer.append("".join(map(chr, prompt)))
        text = self.answers.pop(0)
        try:
            for start in range(0, len(text), 3):
                yield text[start : start + 3]
        finally:
            self.closed += 1
        return Generation(text, (), "stop", len(prompt))


class Templated(Talking):
    has_chat_template = True


PUMP = "# Pumps\n\nA pump moves water through pipes.\n\nIt was built in 1851 by hand.\n"
LAMP = "A lamp gives light at night.\n"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "pump.md").write_text(PUMP)
    (folder / "lamp.txt").write_text(LAMP)
    return folder


@pytest.fixture
def talk(tmp_path: Path, docs: Path) -> Callable[..., Conversation]:
    """A conversation with a model that says what it is told to."""

    def start(gem: Talking, **options: Any) -> Conversation:
        index = Index.open(tmp_path / "index", gem)  # type: ignore[arg-type]
        index.sync([docs])
        return Conversation(index, **options)

    return start


# -- follow-ups --------------------------------------------------------------------------------


def test_a_follow_up_is_searched_and_answered_as_a_question_that_stands_alone(
    talk: Callable[..., Conversation],
) -> None:
    gem = Talking(["It moves water.", "It was built in 1851."], [" When was the pump built? "])
    conversation = talk(gem, k=1)
    first, second = conversation.ask("What does a pump do?"), conversation.ask("When was it built?")
    assert first.standalone == first.question == "What does a pump do?"
    assert (second.question, second.standalone) == (
        "When was it built?", "When was the pump built?",
    )  # fmt: skip
    assert second.hits == conversation.index.search("When was the pump built?", 1)
    assert "Question: When was the pump built?\nAnswer:" in gem.read_to_answer[1]
    assert "it built" not in gem.read_to_answer[1]
    assert conversation.turns == [first, second]
    gem.answers, gem.rewritten = ["By hand."], ["Who built the pump?"]
    conversation.ask("Who did?")
    assert (
        "Q: When was the pump built?\nA: It was built in 1851.\nQ: Who did?"
        in gem.read_to_rewrite[1]
    )
    assert set(second.answer.timings) == {"rewrite", "search", "generate"}


def test_the_first_question_is_never_rewritten(talk: Callable[..., Conversation]) -> None:
    gem = Talking(["It moves water.", "It moves water."], ["never read"])
    conversation = talk(gem)
    conversation.ask("And what does a pump do?")
    assert gem.read_to_rewrite == []
    conversation.turns.clear()
    conversation.ask("And what does a pump do?")
    assert gem.read_to_rewrite == []


def test_later_questions_read_earlier_ones_as_they_stand_alone() -> None:
    gem = Talking(rewritten=["Who built the pump?"])
    history = [("What is a pump?", "A machine [1]."), ("When was the pump built?", "In\n1851. [2]")]
    assert rewrite_question(gem, " Who built it? ", history) == "Who built the pump?"  # type: ignore[arg-type]
    (prompt,) = gem.read_to_rewrite
    assert prompt.endswith(
        "\n\nQ: What is a pump?\nA: A machine.\nQ: When was the pump built?\nA: In 1851.\n"
        "Q: Who built it?\nQuestion alone:"
    )
    assert gem.sampling[0]["stop"] == "\n"


def test_a_chat_model_is_asked_by_its_template() -> None:
    gem = Templated(rewritten=['"Who built the pump?"'])
    history = [("What is a pump?", "A machine.")]
    assert rewrite_question(gem, "Who built it?", history) == "Who built the pump?"  # type: ignore[arg-type]
    (prompt,) = gem.read_to_rewrite
    assert prompt.startswith("<system>Write the last question")
    assert "<assistant>How often is a heat pump serviced?<user>" in prompt
    assert prompt.endswith("<user>Q: What is a pump?\nA: A machine.\nQ: Who built it?")


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("when WAS it built??", "adds nothing"),
        ("When was the pump built.", "is not a question"),
        ("When was the pump sold?", "is the question before"),
        ("When was it built, the pump...", "too long"),
        ("Who made the pump?", "has nothing of the question"),
        ("When was it built, dear friend of mine?", "adds nothing of the conversation"),
        ("When was the pump built, painted, wrapped and shipped?", "is mostly made up"),
    ],
)
def test_a_question_is_kept_where_its_rewriting_is_no_use(written: str, problem: str) -> None:
    gem = Talking(rewritten=[written])
    history = [("When was the pump sold?", "In May.")]
    kept = rewrite_question(gem, "When was it built?", history)  # type: ignore[arg-type]
    assert kept == "When was it built?", problem


@given(st.integers(1000, 3000), st.integers(1, 8))
def test_the_oldest_turns_are_cut_and_never_the_question(context: int, turns: int) -> None:
    history = [(f"What is part number {n}?", f"Part {n} is. " * 60) for n in range(turns)]
    question = "And which of them is the one that is the most expensive of all?"
    gem = Talking(rewritten=[""], context=context)
    assert rewrite_question(gem, question, history) == question  # type: ignore[arg-type]
    if not gem.read_to_rewrite:  # not even the last turn fits
        assert context < 1400
        return
    (prompt,) = gem.read_to_rewrite
    assert prompt.endswith(f"\nQ: {question}\nQuestion alone:")
    kept = [int(number) for number in re.findall(r"Q: What is part number (\d)\?", prompt)]
    assert kept == list(range(turns))[-len(kept) :]
    if len(kept) < turns:  # one more would not have fitted
        assert len(prompt) + 64 + 440 > context


def test_a_history_that_does_not_fit_leaves_the_question_as_it_is(
    talk: Callable[..., Conversation],
) -> None:
    gem = Talking(["Yes.", "No."], context=500)
    conversation = talk(gem, max_tokens=20)
    conversation.ask("What is a pump?")
    assert conversation.ask("And a lamp?").standalone == "And a lamp?"
    assert gem.read_to_rewrite == []
    with pytest.raises(InputError, match="the question leaves no room for a passage"):
        conversation.ask("And a lamp? " * 50)
    assert len(conversation.turns) == 2


# -- streams -----------------------------------------------------------------------------------

HITS = [
    Hit(Chunk("lamp", "", 0, len(LAMP), LAMP), 0.5),
    Hit(Chunk("pump", "", 0, len(PUMP), PUMP), 0.4),
]
FRAGMENTS = (
    "A pump", " moves", " water.", " It was built", " in 1851", " by hand!", " The moon", " is",
    " cheese.", "e.g.", " 3", " m", " [1]", "[2]", ".", "?", '"', " ", "\n", "水泵。", "月亮",
)  # fmt: skip


class Saying(Talking):
    """Streams given pieces; gives the same as a whole."""

    def __init__(self, pieces: Sequence[str]) -> None:
        super().__init__()
        self.pieces = pieces

    def generate(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[Generation]:
        return [Generation("".join(self.pieces), (), "stop", 1)]

    def stream(self, prompt: Sequence[int], **sampling: Any) -> Generator[str, None, Generation]:
        yield from self.pieces
        return Generation("".join(self.pieces), (), "stop", 1)


def without_timings(found: Answer) -> Answer:
    return replace(found, timings={})


@settings(max_examples=50)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.data())
def test_a_streamed_answer_is_the_whole_one_wherever_it_is_cut(
    fragments: list[str], data: st.DataObject
) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for style in ("free", "checked"):
        for parts in (pieces, list(text)):
            gem: Any = Saying(parts)
            shown, streamed = run_out(stream_answer(gem, "Why?", HITS, style))  # type: ignore[arg-type]
            whole = answer(gem, "Why?", HITS, style)  # type: ignore[arg-type]
            assert "".join(shown) == whole.text
            assert without_timings(streamed) == without_timings(whole)


@given(st.text(st.sampled_from("aB1.!? \n\"'é月。")))
def test_sentences_are_those_of_the_whole_text_wherever_they_are_cut(text: str) -> None:
    want = [text[start:stop].strip() for start, stop in split_sentences(text)]
    checker = SentenceChecker([])
    for pieces in ([text], list(text)):
        checked = [sentence.text for sentence in checker.check_pieces(pieces)]
        assert checked == [sentence for sentence in want if any(map(str.isalnum, sentence))]


def test_checked_sentences_come_one_by_one_and_nothing_that_is_left_out() -> None:
    gem: Any = Talking(["A pump moves water. The moon is cheese. It was built in 1851 by hand."])
    pieces, found = run_out(stream_answer(gem, "Why?", HITS, "checked"))
    assert pieces == ["A pump moves water. [2]", " It was built in 1851 by hand. [2]"]
    assert found.unsupported == ["The moon is cheese."]


def test_words_of_other_styles_come_as_they_are_written(talk: Callable[..., Conversation]) -> None:
    conversation = talk(Talking(["  A pump moves water. [1] \n"]), style="quote")
    pieces, turn = run_out(conversation.stream("What does a pump do?"))
    assert len(pieces) > 5
    assert "".join(pieces) == turn.text == "A pump moves water. [1]"
    assert conversation.turns == [turn]


def test_a_stream_that_is_closed_ends_generation_and_leaves_no_turn(
    talk: Callable[..., Conversation],
) -> None:
    gem = Talking(["It moves water."])
    conversation = talk(gem)
    stream = conversation.stream("What does a pump do?")
    assert next(stream) == "It"
    stream.close()
    assert (gem.closed, conversation.turns) == (1, [])


# -- citations and refusals --------------------------------------------------------------------


@pytest.mark.parametrize("style", ["free", "checked", "quote"])
def test_citations_have_their_place_in_the_file(
    talk: Callable[..., Conversation], style: str
) -> None:
    said = "It was built in 1851 by hand." + (" [1]" if style == "quote" else "")
    turn = talk(Talking([said]), k=1, style=style).ask("When was the pump built in 1851 by hand?")
    (citation,) = turn.citations
    assert (citation.number, citation.source, citation.place) == (1, "docs/pump.md", "line 5")
    assert PUMP[slice(*citation.span)] == citation.quote
    assert citation.quote.startswith("It was built in 1851 by hand")


def test_a_citation_whose_document_is_gone_has_no_place(
    talk: Callable[..., Conversation],
) -> None:
    conversation = talk(Talking(["It was built in 1851 by hand."]), k=1)
    stream = conversation.stream("When was the pump built in 1851 by hand?")
    next(stream)
    conversation.index.remove("docs/pump.md")
    (citation,) = run_out(stream)[1].citations
    assert (citation.source, citation.place) == ("docs/pump.md", "")


@pytest.mark.parametrize("style", ["checked", "quote"])
def test_a_refusal_cites_nothing_and_leaves_nothing_out(
    talk: Callable[..., Conversation], style: str
) -> None:
    pieces, turn = run_out(talk(Talking([REFUSAL]), style=style).stream("Who is the king?"))
    assert "".join(pieces) == turn.text == REFUSAL
    assert (turn.citations, turn.answer.unsupported) == ([], [])


@pytest.mark.parametrize("style", ["free", "checked", "quote", "quotes"])
def test_without_passages_the_model_is_not_asked(
    talk: Callable[..., Conversation], style: str
) -> None:
    gem = Talking(["Made up."])
    conversation = talk(gem, min_score=0.999, style=style)
    pieces, turn = run_out(conversation.stream("Who is the king?"))
    assert pieces == [turn.text] == [REFUSAL]
    assert (turn.hits, turn.citations, gem.read_to_answer) == ([], [], [])
    found = conversation.index.ask("Who is the king?", min_score=0.999, style=style)  # type: ignore[arg-type]
    assert (found.text, found.citations) == (REFUSAL, [])


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused_at_once(
    talk: Callable[..., Conversation], question: str
) -> None:
    conversation = talk(Talking())
    for put in (conversation.ask, conversation.stream):
        with pytest.raises(InputError, match="the question is empty: ask something"):
            put(question)
    assert conversation.turns == []


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"style": "poem"}, "there is no style 'poem'"),
        ({"ranking": "luck"}, "ranking must be one of vectors, words, hybrid, not 'luck'"),
        ({"margin": 3}, "margin must be a number from 0 to 2"),
    ],
)
def test_settings_are_checked_before_the_first_question(
    talk: Callable[..., Conversation], wrong: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        talk(Talking(), **wrong)


# -- with the bundled model, and on the command line ---------------------------------------------

DEFAULTS = (
    "# Functions\n\nDefault parameter values are evaluated from left to right when the function "
    "definition is executed.\n\nThis means that the expression is evaluated once, when the "
    "function is defined.\n"
)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Gem]:
    with gem_rag.load("gem-tiny") as loaded:
        yield loaded


@pytest.fixture
def tiny_index(tmp_path: Path, docs: Path, tiny: Gem, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.chdir(tmp_path)
    (docs / "functions.md").write_text(DEFAULTS)
    index = Index.open(tmp_path / "gem-index", tiny)
    index.sync([docs])
    return index


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    """Run `gem-rag chat` with lines from a pipe: exit code, stdout, stderr."""

    def call(lines: Sequence[str], *options: str) -> tuple[int, str, str]:
        read, write = os.pipe()
        os.write(write, "".join(f"{line}\n" for line in lines).encode())
        os.close(write)
        with os.fdopen(read) as pipe, warnings.catch_warnings():
            monkeypatch.setattr("sys.stdin", pipe)
            with pytest.raises(SystemExit) as stopped:
                cli.main(["chat", *options])
        return int(stopped.value.code or 0), *capsys.readouterr()

    return call


@pytest.mark.parametrize("style", ["quote", "checked", "free"])
def test_the_bundled_model_streams_what_it_answers(tiny_index: Index, style: Any) -> None:
    conversation = Conversation(tiny_index, style=style, max_tokens=24)
    for question in ("When are default parameter values evaluated?", "And in which order?"):
        pieces, turn = run_out(conversation.stream(question))
        assert "".join(pieces) == turn.text
        whole = tiny_index.ask(turn.standalone, style=style, max_tokens=24)
        assert without_timings(turn.answer) == without_timings(whole)
        for citation in turn.citations:
            document = tiny_index.document(citation.source)
            assert document.text[slice(*citation.span)] == citation.quote
            line = document.text.count("\n", 0, citation.span[0]) + 1
            assert citation.place == f"line {line}"
    assert conversation.turns[0].standalone == "When are default parameter values evaluated?"
    if style == "quote":
        assert conversation.turns[0].citations


def test_five_turns_through_a_pipe(
    tiny_index: Index, chat: Callable[..., tuple[int, str, str]]
) -> None:
    questions = [
        "When are default parameter values evaluated?",
        "And in which order?",
        "What moves water?",
        "What gives light at night?",
        "When are default parameter values evaluated?",
    ]
    code, out, err = chat([*questions, "", "not read"], "--index", "gem-index", "--style", "quote")
    assert (code, err) == (0, "")
    blocks = out.strip().split("\n\n")
    answers, cited = blocks[::2], blocks[1::2]
    assert len(answers) == len(cited) == 5
    assert answers[0].startswith("Default parameter values")
    assert re.fullmatch(r"\[1\] docs/functions\.md:\d+-\d+ \(line [35]\)", cited[0])


def test_what_was_left_out_is_counted_and_a_follow_up_is_shown_as_it_was_asked(
    tiny_index: Index,
    tiny: Gem,
    chat: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Talking(
        ["It was built in 1851 by hand.", "A pump moves water. Moons are cheese. So is Mars."],
        ["What does a pump move?"],
    )
    monkeypatch.setattr(tiny, "stream", told.stream)
    monkeypatch.setattr(tiny, "generate", told.generate)
    told.context_length = tiny.context_length
    options = ("-i", "gem-index", "--style", "checked", "--k", "3", "--margin", "2")
    code, out, _ = chat(["When was the pump built?", "What does it move?"], *options)
    assert code == 0
    first, second = re.split(r"(?<=\n)\n(?=A pump)", out)
    assert re.fullmatch(
        r"It was built in 1851 by hand\. \[(\d)\]\n\n\[\1\] docs/pump\.md:\d+-\d+ \(line 5\)\n",
        first,
    )
    assert re.fullmatch(
        r"A pump moves water\. \[(\d)\]\n\nasked as: What does a pump move\?\n"
        r"\[\1\] docs/pump\.md:\d+-\d+ \(line 3\)\n"
        r"left out: 2 sentences that no passage supports\n\n",
        second,
    )


def test_an_interrupt_ends_the_answer_and_not_the_conversation(
    tiny_index: Index,
    tiny: Gem,
    chat: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, calls = tiny.stream, iter((1, 2, 3, 4))

    def interrupted(prompt: Any, **sampling: Any) -> Generator[str, None, Generation]:
        if next(calls) % 2:
            yield "Half an ans"
            raise KeyboardInterrupt
        return (yield from stream(prompt, **sampling))

    monkeypatch.setattr(tiny, "stream", interrupted)
    lines = ["What moves water?", "What gives light at night?"]
    for options in (["--index", "gem-index"], []):
        code, out, err = chat(lines, "--max-tokens", "24", *options)
        assert (code, err) == (0, "")
        assert out.startswith("Half an ans\n\n")
        assert len(out.strip().splitlines()) > 1


def test_a_question_that_cannot_be_answered_costs_one_line_and_the_exit_code(
    tiny_index: Index, chat: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = chat(["why? " * 2000, "What moves water?"], "--index", "gem-index")
    *warned, problem = err.splitlines()
    assert (code, len(warned) <= 1) == (2, True)  # that only its beginning was embedded
    assert problem.startswith("gem-rag: the question leaves no room for a passage")
    assert "docs/" in out or REFUSAL in out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--index", "nowhere"], "nowhere"),
        (["--index", "gem-index", "--style", "poem"], "there is no style 'poem'"),
        (["--index", "gem-index", "--system", "x"], "--system has an effect only without --index"),
        (["--style", "quote"], "--style has an effect only with --index: add --index FOLDER"),
        (["-k", "3"], "--k has an effect only with --index"),
    ],
)
def test_wrong_options_are_one_line(
    tiny_index: Index,
    chat: Callable[..., tuple[int, str, str]],
    options: list[str],
    match: str,
) -> None:
    code, out, err = chat(["What moves water?"], *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert match in err
