"""Answers: prompts that fit, passages in full view, citations that can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from fakes import FakeGem
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from gem_rag.core.config import GemConfig
from gem_rag.documents.document import Chunk
from gem_rag.errors import InputError
from gem_rag.generation.grammars import quote_grammar, validate_grammar
from gem_rag.generation.sampling import Generation
from gem_rag.rag.answer import REFUSAL, Answer, answer
from gem_rag.rag.citations import cite
from gem_rag.rag.hits import Hit


class Answering(FakeGem):
    """Answers what it is told to, and remembers what it was asked; a token is a character."""

    def __init__(self, reply: str = "", context: int = 1000, **config: Any) -> None:
        super().__init__()
        self.reply, self.context_length = reply, context
        self.config = GemConfig(**config)
        self.asked: list[str] = []
        self.sampling: dict[str, Any] = {}

    def tokenize(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def tokenize_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        return self.tokenize(
            "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"
        )

    def generate(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[Generation]:
        self.asked += ["".join(map(chr, prompt)) for prompt in prompts]
        self.sampling = sampling
        return [Generation(self.reply, (), "stop", len(prompt)) for prompt in prompts]


class Chatting(Answering):
    has_chat_template = True


def hit(
    text: str, source: str = "doc", start: int = 100, title: str = "", score: float = 0.5
) -> Hit:
    return Hit(Chunk(source, title, start, start + len(text), text), score)


PUMP, LAMP = hit("A pump moves water through pipes."), hit("A lamp gives light.", "lamp", 0)


def ask(gem: Answering, *hits: Hit, question: str = "What moves water?", **sampling: Any) -> Answer:
    return answer(gem, question, hits or (PUMP, LAMP), **sampling)  # type: ignore[arg-type]


def test_prompt_holds_numbered_passages_and_the_question() -> None:
    gem = Answering("x")
    ask(gem)
    (prompt,) = gem.asked
    assert "[1] A pump moves water through pipes.\n\n[2] A lamp gives light." in prompt
    assert prompt.endswith("Question: What moves water?\nAnswer:")
    assert set(gem.sampling["stop"]) == {"\n\n", "\nQuestion:"}


def test_checkpoint_has_its_own_prompt_and_braces_are_text() -> None:
    gem = Answering("x", answer_prompt="P: {passages} Q: {question} A:")
    ask(gem, hit("a {question} {passages} {0}"), question="{passages}?")
    assert gem.asked == ["P: [1] a {question} {passages} {0} Q: {passages}? A:"]


def test_chat_models_are_asked_by_their_template() -> None:
    gem = Chatting("x", context=2000)
    ask(gem, stop="###")
    (prompt,) = gem.asked
    assert prompt.startswith("<user>")
    assert prompt.endswith("<assistant>")
    assert gem.sampling["stop"] == "###"


def test_callers_stop_strings_are_kept() -> None:
    gem = Answering("x")
    ask(gem, stop=["END"])
    assert gem.sampling["stop"] == ["END", "\n\n", "\nQuestion:"]


@given(st.integers(360, 900))
def test_prompt_and_answer_fit_the_context(context: int) -> None:
    gem = Answering("x", context)
    hits = [hit("word " * 20, f"doc{n}") for n in range(6)]
    read = ask(gem, *hits, max_tokens=50).hits
    (prompt,) = gem.asked
    assert len(prompt) + 50 <= context
    assert read == hits[: len(read)]
    if len(read) < 6:  # one more would not have fitted
        assert len(prompt) + len("word " * 20) + 50 > context - 10


def test_a_passage_that_does_not_fit_is_cut() -> None:
    gem = Answering("x", 500)
    read = ask(gem, hit("word " * 500), max_tokens=50).hits
    assert len(read) == 1
    assert "word word word" in gem.asked[0]


def test_passages_far_below_the_best_are_not_read() -> None:
    hits = [hit(f"text {n}", score=score) for n, score in enumerate((0.55, 0.7, 0.3, 0.6))]
    read = {
        margin: ask(Answering("x", answer_margin=0.1), *hits, margin=margin).hits
        for margin in (None, 0.0, 0.15, 2.0)
    }
    assert read == {None: [hits[1], hits[3]], 0.0: [hits[1]], 0.15: hits[:2] + hits[3:], 2.0: hits}
    assert ask(Answering("x"), *hits).hits == hits


def test_a_margin_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="margin must be a number from 0 to 2"):
        ask(Answering(), margin=-0.1)
    with pytest.raises(InputError, match="answer_margin must be .* not 'wide'"):
        Answering(answer_margin="wide")


def test_empty_and_over_long_questions_are_refused() -> None:
    with pytest.raises(InputError, match="the question is empty"):
        ask(Answering(), question=" ")
    with pytest.raises(InputError, match="leaves no room for a passage"):
        ask(Answering(context=300), question="why? " * 100)


# -- citations ---------------------------------------------------------------------------------


def cited(text: str) -> list[tuple[int, str, str]]:
    return [(c.number, c.source, c.quote) for c in cite(text, [PUMP.chunk, LAMP.chunk])]


def test_words_of_a_passage_are_cited_as_they_stand_there() -> None:
    assert cited("It is said: a PUMP, moves  water!") == [(1, "doc", "A pump moves water")]


def test_span_is_in_the_document() -> None:
    (citation,) = cite("moves water through pipes", [PUMP.chunk])
    text = " " * PUMP.chunk.start + PUMP.chunk.text
    assert text[slice(*citation.span)] == citation.quote == "moves water through pipes"


def test_best_quote_comes_first() -> None:
    both = cited("A lamp gives light. A pump moves water through pipes.")
    assert [number for number, *_ in both] == [1, 2]


def test_named_passage_is_cited_even_for_few_words_and_wrong_numbers_are_not() -> None:
    assert cited("Use light [2].") == [(2, "lamp", "light")]
    assert cited("Nothing of the sort [7].") == []


def test_short_answer_of_a_passages_words_is_cited() -> None:
    assert cited("Pipes") == [(1, "doc", "pipes")]


@pytest.mark.parametrize("text", ["", "...", "Elephants never forget anything."])
def test_words_of_no_passage_cite_nothing(text: str) -> None:
    assert cited(text) == []


# -- quotes ------------------------------------------------------------------------------------

STORY = hit("A pump moves water.  It has\n   two valves! See below.", "story", 50, "# Pumps (old)")


def allowed(grammar: str, text: str) -> bool:
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("by_config", [True, False])
def test_a_quote_is_held_to_words_of_a_passage_and_has_its_place(by_config: bool) -> None:
    reply = "It has two valves! [2]"
    gem = Answering(reply, answer_style="quote" if by_config else "free")
    found = ask(gem, LAMP, STORY, **({} if by_config else {"style": "quote"}))
    assert found.text == reply
    (citation,) = found.citations
    assert (citation.number, citation.source) == (2, "story")
    assert citation.quote == "It has\n   two valves!"
    assert (" " * 50 + STORY.chunk.text)[slice(*citation.span)] == citation.quote
    grammar = gem.sampling["grammar"]
    for text in (f" {reply}", reply, "A lamp [1]", "# Pumps (old) A pump [2]", REFUSAL):
        assert allowed(grammar, text), text
    for text in ("It has two valves! [1]", "t has two [2]", "It has valves! [2]", "Yes.", "lamp",
                 f"{REFUSAL} [1]"):  # fmt: skip
        assert not allowed(grammar, text), text


def test_words_of_a_title_cite_the_whole_chunk() -> None:
    (citation,) = ask(Answering("Pumps (old) [2]"), LAMP, STORY, style="quote").citations
    assert citation.quote == STORY.chunk.text


@pytest.mark.parametrize("reply", [REFUSAL, REFUSAL[:12], ""])
def test_refusals_cite_nothing(reply: str) -> None:
    found = ask(Answering(reply), LAMP, style="quote")
    assert (found.text, found.citations) == (reply, [])


def test_a_quote_cut_by_max_tokens_cites_its_passage() -> None:
    (citation,) = ask(Answering("A lamp gives"), PUMP, LAMP, style="quote").citations
    assert (citation.number, citation.quote) == (2, "A lamp gives")


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4), st.data())
def test_any_run_of_any_passages_words_may_be_quoted(texts: list[str], data: st.DataObject) -> None:
    passages = [" ".join(text.split()) for text in texts]
    number = data.draw(st.integers(1, len(passages)))
    words = passages[number - 1].split(" ")
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(words) - 1)] * 2)))
    quote = " ".join(words[first : last + 1])
    grammar = validate_grammar(quote_grammar(passages, REFUSAL))
    assert allowed(grammar, f" {quote} [{number}]")
    assert not allowed(grammar, f" {quote} [{len(passages) + 1}]")
    assert not allowed(grammar, f" {quote}  [{number}]")
    two = f" {quote} [{number}] {quote} [{number}]"
    assert not allowed(grammar, two)
    assert allowed(validate_grammar(quote_grammar(passages, REFUSAL, 2)), two)


def test_up_to_three_quotes_are_cited_each_in_its_passage() -> None:
    gem = Answering("It has two valves! [2] A lamp [1] light. [1]")
    found = ask(gem, LAMP, STORY, style="quotes")
    places = [(c.number, c.source, c.quote) for c in found.citations]
    assert places == [
        (2, "story", "It has\n   two valves!"), (1, "lamp", "A lamp"), (1, "lamp", "light.")
    ]  # fmt: skip
    grammar = gem.sampling["grammar"]
    assert allowed(grammar, gem.reply)
    assert not allowed(grammar, f"{gem.reply} A lamp [1]")
    assert not allowed(grammar, f"A lamp [1] {REFUSAL}")


def test_numbers_among_quoted_words_do_not_end_the_quote() -> None:
    story = hit("See [1] and [2] for more. So it goes.")
    found = ask(Answering("See [1] and [2] for [2] So it [2]"), LAMP, story, style="quotes")
    assert [(c.number, c.quote) for c in found.citations] == [
        (2, "See [1] and [2] for"),
        (2, "So it"),
    ]


def test_a_second_quote_cut_by_max_tokens_cites_its_passage() -> None:
    found = ask(Answering("A lamp [2] A pump moves wa"), PUMP, LAMP, style="quotes")
    assert [(c.number, c.quote) for c in found.citations] == [(2, "A lamp"), (1, "A pump moves wa")]


# -- checked sentences -------------------------------------------------------------------------

PUMPS = hit(
    "A pump moves water through pipes. It was built in 1851 by hand. The valves close when the "
    "pressure falls.", "pumps", 10, "# Waterworks",
)  # fmt: skip


def test_sentences_that_a_passage_supports_are_kept_with_its_number() -> None:
    moon = "The moon is made of cheese."
    reply = f"Water is moved through the pipes by a pump. {moon} A lamp gives light!"
    found = ask(Answering(reply), LAMP, PUMPS, style="checked")
    assert found.text == "Water is moved through the pipes by a pump. [2] A lamp gives light! [1]"
    assert found.unsupported == [moon]
    assert [(c.number, c.quote) for c in found.citations] == [
        (2, "A pump moves water through pipes."), (1, "A lamp gives light.")
    ]  # fmt: skip
    assert (" " * 10 + PUMPS.chunk.text)[slice(*found.citations[0].span)] == found.citations[
        0
    ].quote


@pytest.mark.parametrize(
    ("sentence", "supported"),
    [
        ("The pump was built in 1851.", True),
        ("The pump was built in 1852.", False),
        ("The valve closes as the pressure falls.", True),
        ("The valve opens when the moon rises.", False),
        ("Waterworks: a pump moves water.", True),
        ("It was built by hand [1] in 1851 [7].", True),
    ],
)
def test_support_is_by_the_words_that_say_something(sentence: str, supported: bool) -> None:
    found = ask(Answering(sentence), LAMP, PUMPS, style="checked")
    assert bool(found.citations) == supported
    assert (found.text == REFUSAL) == (not supported)
    assert bool(found.unsupported) == (not supported)


@pytest.mark.parametrize("reply", ["", " \n", "...", "[1]"])
def test_no_sentence_is_a_refusal(reply: str) -> None:
    found = ask(Answering(reply), LAMP, style="checked")
    assert (found.text, found.citations, found.unsupported) == (REFUSAL, [], [])


@pytest.mark.parametrize(
    "text", ["パイプは水を運びます。月はチーズです。", "水泵通过管道输送水。月亮是奶酪。"]
)
def test_sentences_without_spaces_are_checked(text: str) -> None:
    first, second = (part + "。" for part in text.split("。")[:2])
    found = ask(Answering(text), LAMP, hit(f"{first}以上。", "wide"), style="checked")
    assert found.text == f"{first} [2]"
    assert found.unsupported == [second]


def test_style_of_the_call_comes_before_the_checkpoints() -> None:
    gem = Answering("words of its own", answer_style="quote")
    assert ask(gem, style="free").text == "words of its own"
    assert "grammar" not in gem.sampling


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(
        InputError, match="there is no style 'poem': use free, checked, quote, quotes"
    ):
        ask(Answering(), style="poem")
