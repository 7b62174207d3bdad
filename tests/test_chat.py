"""Conversations reach any model, and tools are called in their own form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import helpers
import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher

import gem_rag
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError
from gem_rag.generation.chat import (
    merge_adjacent_messages,
    normalize,
    tokenize_conversation,
    without_question,
)
from gem_rag.generation.reasoning import Reasoning
from gem_rag.generation.replies import ChatReply, InvalidToolCall, ToolCall
from gem_rag.generation.sampling import Generation
from gem_rag.generation.tools import Tools, calls_since_user
from gem_rag.model import Gem

STRICT = (  # takes turns and nothing else, as Mistral's and Gemma's do
    "{% for m in messages %}"
    "{% if m['role'] == 'system' or (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
WITH_TOOLS = (  # as Qwen's and Hermes's do
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% for call in m.get('tool_calls', []) %}"
    "{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
)


def tool(name: str, description: str = "", **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = tool("get_weather", "The weather in a city.", city={"type": "string"})
DOUBLE = tool("double", "Twice a number.", number={"type": "integer"})
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "1", "type": "function",
         "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    ],
}  # fmt: skip
CUT = "the call was cut after 2 tokens: raise max_tokens"
RESULT = {"role": "tool", "tool_call_id": "1", "content": "Snow."}


def by_characters(generation: Generation) -> Generator[str, None, Generation]:
    """A generated text as a stream that has each character by itself."""
    yield from generation.text
    return generation


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def shown(messages: Any, template: str | None, tools: Any = (), choice: str = "auto") -> str:
    """What a model with this template reads."""
    tokenizer = helpers.build_tokenizer(chat_template=template)
    ids = tokenize_conversation(
        SafeTokenizer(tokenizer), messages, Tools(tools, choice, template or "")
    )
    return tokenizer.decode(ids)


@pytest.fixture(scope="module")
def tiny() -> Any:
    with gem_rag.load("gem-tiny") as loaded:
        yield loaded


@pytest.fixture
def silent(gem_folder: Callable[..., Path]) -> Any:
    """A model without a chat template."""
    folder = gem_folder("phi")
    tokenizer = helpers.build_tokenizer(chat_template=None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    with gem_rag.load(folder) as loaded:
        assert not loaded.has_chat_template
        yield loaded


# -- messages ----------------------------------------------------------------------------------


def test_neighbours_of_one_role_become_one() -> None:
    said = [system("a"), system("b"), user("c"), user(["d", {"type": "text", "text": "e"}])]
    assert shown(
        said, "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    ) == ("[system]a\n\nb[user]c\n\nde")


def test_results_of_tools_stay_apart() -> None:
    results = [{"role": "tool", "tool_call_id": i, "content": i} for i in "12"]
    assert merge_adjacent_messages(results) == results


def test_a_template_has_options_of_its_own(
    gem_folder: Callable[..., Path],
) -> None:
    template = "{{ messages[0]['content'] }}{% if enable_thinking is false %}!{% endif %}"
    folder = gem_folder("llama")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    helpers.build_tokenizer(chat_template=template).save_pretrained(folder)
    with gem_rag.load(folder) as gem:
        options = {"enable_thinking": False}
        thinking = gem.chat([user("Hi")], max_tokens=2)
        plain = gem.chat([user("Hi")], chat_template_kwargs=options, max_tokens=2)
        assert plain.prompt_tokens == thinking.prompt_tokens + 1
        pieces = gem.stream_chat([user("Hi")], chat_template_kwargs=options, max_tokens=2)
        assert helpers.run_out(pieces)[1] == plain
        with pytest.raises(InputError, match="chat_template_kwargs may not hold 'tools'"):
            gem.chat([user("Hi")], chat_template_kwargs={"tools": []})


def test_a_template_that_refuses_system_messages_reads_them_with_the_first_question() -> None:
    assert shown([system("Be brief."), user("Hello")], STRICT) == "[user]Be brief.\n\nHello"


def test_a_model_without_a_template_reads_a_plain_conversation() -> None:
    said = [system("Be brief."), user("Hi"), {"role": "assistant", "content": "Yes?"}, user("Why?")]
    assert (
        shown(said, None) == "Be brief.\n\nUser: Hi\n\nAssistant: Yes?\n\nUser: Why?\n\nAssistant:"
    )


def test_a_plain_answer_ends_where_the_user_would_go_on(
    silent: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    (free,) = silent.generate(["User: hello\n\nAssistant:"], max_tokens=20)
    assert silent.chat([user("hello")], max_tokens=20).text == free.text
    next_turn = free.text[4:6]
    monkeypatch.setattr("gem_rag.model.PLAIN_STOP", (next_turn,))
    reply = silent.chat([user("hello")], max_tokens=20, stop="no such string")
    assert reply.text == free.text[: free.text.index(next_turn)]


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({"role": "robot", "content": "x"}, "role 'robot'"),
        (user([{"type": "image_url", "image_url": {}}]), "'image_url': the model reads text only"),
        (user(3), "content is int"),
        ({**CALLED, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "not JSON"),
    ],
)
def test_messages_of_another_form_are_refused(tiny: Gem, message: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        tiny.chat([message])


# -- tools in prompts --------------------------------------------------------------------------


def test_a_template_that_shows_tools_gets_them_and_their_calls() -> None:
    text = shown([user("Oslo?"), CALLED, RESULT], WITH_TOOLS, [WEATHER])
    assert '"name": "get_weather"' in text
    assert '[assistant]get_weather{"city": "Oslo"}[tool]Snow.' in text


def test_another_template_gets_tools_calls_and_results_as_text() -> None:
    text = shown([system("Be brief."), user("Oslo?"), CALLED, RESULT], STRICT, [WEATHER, DOUBLE])
    head, call, result = text.split("[assistant]")[0], *text.split("[assistant]")[1].split("[user]")
    assert "get_weather(city: string): The weather in a city.\ndouble(number: integer)" in head
    assert head.index("Tools:") < head.index("Be brief.") < head.index("Oslo?")
    assert json.loads(call) == {"name": "get_weather", "arguments": {"city": "Oslo"}}
    assert result == "get_weather returned: Snow."


# -- calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, STRICT, WITH_TOOLS])
@pytest.mark.parametrize("choice", ["any", "f"])
def test_a_forced_call_has_the_tools_form_whatever_the_model(
    gem_folder: Callable[..., Path], template: str | None, choice: str
) -> None:
    folder = gem_folder("llama")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    helpers.build_tokenizer(chat_template=template).save_pretrained(folder)
    small = tool("f", n={"type": "integer", "minimum": 0, "maximum": 9})
    with gem_rag.load(folder) as gem:
        reply = gem.chat([user("hello")], [small], choice, parallel_tool_calls=False)
    assert isinstance(reply, ChatReply)
    (call,) = reply.tool_calls
    assert call.name == "f"
    assert isinstance(call.arguments["n"], int)
    assert (reply.text, reply.finish_reason) == ("", "stop")


def test_a_model_not_made_for_tools_takes_the_likeliest_form(tiny: Gem) -> None:
    tools = Tools([WEATHER, DOUBLE])
    question = [user("What is the weather in Oslo?")]
    forms = tools.openings()
    # They do not end in quotes, which a token would join to what comes next.
    assert forms == ['{"name":"get_weather', '{"name":"double', '{"answer']
    asked, anyway = (
        tiny.score(tokenize_conversation(tiny._tokenizer, messages, tools), forms)
        for messages in (question, without_question(question))
    )
    scores = asked - anyway  # whatever the question, some names are likelier than others
    reply = tiny.chat(question, [WEATHER, DOUBLE], max_tokens=60)
    wanted = ["get_weather", "double", None][int(scores.argmax())]
    assert (reply.tool_calls[0].name if reply.tool_calls else None) == wanted


def test_a_model_not_made_for_tools_goes_on_to_further_calls_and_ends() -> None:
    said = normalize([user("Oslo?"), CALLED, RESULT])
    oslo = ToolCall("get_weather", {"city": "Oslo"})
    assert calls_since_user(said) == [oslo]
    assert calls_since_user([*said, user("And Bergen?")]) == []
    tools = Tools([WEATHER], made=[oslo])
    assert tools.openings() == ['{"name":"get_weather', '{"answer']
    tools.choose(np.array([0.5, 0.3], dtype=np.float32))
    assert "get_weather" in tools.grammar()
    assert "answer" not in tools.grammar()
    # The same call once more is no call: an answer is what is left.
    assert not tools.repeats(ChatReply("", (), "stop", 1, tool_calls=(ToolCall("double", {}),)))
    assert tools.repeats(ChatReply("", (), "stop", 1, tool_calls=(oslo,)))
    assert "get_weather" not in tools.grammar()
    assert "answer" in tools.grammar()
    # Nor does it go on for ever with other arguments.
    assert Tools([WEATHER], made=[oslo] * 3).openings() == ['{"answer']


def test_a_further_call_must_be_likelier_than_an_answer() -> None:
    for made, call in (((), True), ((ToolCall("double", {"number": 1}),), False)):
        tools = Tools([WEATHER], made=made)
        assert len(tools.openings()) == 2
        tools.choose(np.array([0.05, 0.0], dtype=np.float32))
        assert ("get_weather" in tools.grammar()) == call


def test_a_repeated_call_becomes_an_answer(tiny: Gem) -> None:
    """Streamed or not, and of several replies only those that repeat."""
    [call] = tiny.chat([user("Oslo?")], [WEATHER], "get_weather").tool_calls
    written = {"name": call.name, "arguments": json.dumps(call.arguments)}
    made = {"role": "assistant", "tool_calls": [{"id": "1", "function": written}]}
    said = [user("Oslo?"), made, RESULT]
    reply = tiny.chat(said, [WEATHER], max_tokens=40)
    assert call not in reply.tool_calls
    _, streamed = helpers.run_out(tiny.stream_chat(said, [WEATHER], max_tokens=40))
    assert streamed == reply
    assert tiny.sample_replies(said, 2, [WEATHER], max_tokens=40) == [reply, reply]


def test_a_repeated_call_is_answered_by_the_model(tiny: Gem, monkeypatch: Any) -> None:
    call = tiny.chat([user("Oslo?")], [WEATHER], "get_weather").tool_calls[0]
    monkeypatch.setattr(Tools, "choose", lambda tools, likelihoods: None)  # call, or answer
    monkeypatch.setattr(Tools, "repeats", _once(Tools.repeats, call))
    reply = tiny.chat([user("Oslo?")], [WEATHER], max_tokens=60)
    assert (reply.tool_calls, reply.invalid_tool_calls) == ((), ())
    assert not reply.text.startswith("{")
    _, streamed = helpers.run_out(tiny.stream_chat([user("Oslo?")], [WEATHER], max_tokens=60))
    assert streamed == reply


def _once(repeats: Any, call: ToolCall) -> Any:
    """`Tools.repeats`, as if every reply had made this call and it had been made before."""

    def patched(tools: Tools, reply: ChatReply) -> bool:
        tools._made = [call]
        return bool(repeats(tools, dataclasses.replace(reply, tool_calls=(call,))))

    return patched


TWO = '{"name":"double","arguments":{"number":2}}\n{"name":"double","arguments":{"number":3}}'
WRAPPED = (
    '<tool_call>\n{"name":"double","arguments":{"number":2}}\n</tool_call>\n'
    '<tool_call>\n{"name":"double","arguments":{"number":3}}\n</tool_call>'
)


@pytest.mark.parametrize("written", [TWO, WRAPPED])
@pytest.mark.parametrize("missing", [0, 13, 30, 40])
def test_a_reply_may_have_several_calls(written: str, missing: int) -> None:
    tools = Tools([DOUBLE], template=WITH_TOOLS)
    generation = Generation(written[: len(written) - missing], (1, 2), "stop", 3)
    reply = tools.parse_reply(generation)
    calls = [ToolCall("double", {"number": 2}), ToolCall("double", {"number": 3})]
    whole = 1 if missing > (13 if written == WRAPPED else 0) else 2
    assert (reply.text, list(reply.tool_calls)) == ("", calls[:whole])
    assert [call.error for call in reply.invalid_tool_calls] == [CUT] * (2 - whole)


@pytest.mark.parametrize(
    ("written", "tools", "allowed"),
    [
        (TWO, Tools([DOUBLE], template=WITH_TOOLS), True),
        (WRAPPED, Tools([DOUBLE], "any", template=WITH_TOOLS), True),
        (TWO, Tools([DOUBLE], template=WITH_TOOLS, parallel=False), False),
        (TWO, Tools([DOUBLE], "double", template=WITH_TOOLS), False),
        (TWO, Tools([DOUBLE], "any"), False),
        (TWO.splitlines()[0], Tools([DOUBLE], "any"), True),
    ],
)
def test_several_calls_are_for_models_trained_on_tools(
    tiny: Gem, written: str, tools: Tools, allowed: bool
) -> None:
    assert follows(tiny, tools.grammar(), written) == allowed


def follows(gem: Gem, grammar: str, text: str) -> bool:
    """Whether a grammar allows a text."""
    matcher = LLMatcher(gem._engine._llguidance, LLMatcher.grammar_from_lark(grammar))  # type: ignore[attr-defined]
    tokens = gem._tokenizer.encode_continuation(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


# -- reasoning ---------------------------------------------------------------------------------

THINKS = "{{ messages[0].content }}{% if x %}<think>{% endif %}"


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        (THINKS, "Hello", Reasoning(begun=False)),
        (THINKS, "Hello<think>\n", Reasoning(begun=True)),
        (THINKS, "Hello<think>\n\n</think>\n\n", None),  # told not to
        (STRICT, "What does <think> do?", None),
    ],
)
def test_whether_a_model_reasons(template: str, prompt: str, expected: Reasoning | None) -> None:
    assert Reasoning.of(template, prompt) == expected


@pytest.mark.parametrize(
    ("begun", "written", "reasoning", "text", "calls"),
    [
        (False, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes.", 0),
        (True, "Hm.\n</think>\n\nYes.", "Hm.", "Yes.", 0),
        (False, "Yes, <think>.", "", "Yes, <think>.", 0),
        (False, "<think>\nHm, so", "Hm, so", "", 0),  # cut
        (False, "<thi", "", "<thi", 0),
        (False, "<think>Hm.</think>" + TWO, "Hm.", "", 2),
    ],
)
def test_reasoning_is_no_part_of_the_answer(
    begun: bool, written: str, reasoning: str, text: str, calls: int
) -> None:
    tools = Tools([DOUBLE], template=WITH_TOOLS) if calls else Tools([])
    tools.reasoning = Reasoning(begun)
    generation = Generation(written, (1, 2), "stop", 3)
    reply = tools.parse_reply(generation)
    assert (reply.reasoning, reply.text, len(reply.tool_calls)) == (reasoning, text, calls)

    shown_pieces, streamed = helpers.run_out(tools.parse_stream(by_characters(generation)))
    assert streamed == reply
    assert "".join(shown_pieces) == text


def test_a_model_reasons_before_it_calls_or_answers_by_a_schema(tiny: Gem) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    for begun, head in ((False, "<think>Hm {}.</think>\n\n"), (True, "Hm {}.</think>\n")):
        plain, held = Tools([DOUBLE], template=WITH_TOOLS), Tools([], answer=schema)
        plain.reasoning = held.reasoning = Reasoning(begun)
        assert plain.constrains
        assert held.constrains
        for tools, reply in ((plain, TWO), (plain, "Yes."), (held, '{"a":1}')):
            assert follows(tiny, tools.grammar(), head + reply)
            assert follows(tiny, tools.grammar(), reply) == (not begun)
        assert not follows(tiny, held.grammar(), head + '{"a":2}')
        read = held.parse_reply(Generation(head + '{"a":1}', (1,), "stop", 1))
        assert (read.text, read.schema_error) == ('{"a":1}', "")
        assert held.parse_reply(Generation(head + "{", (1,), "length", 1)).schema_error


def test_no_tools_may_be_called(tiny: Gem) -> None:
    plain = tiny.chat([user("What does print do?")], max_tokens=8)
    assert tiny.chat([user("What does print do?")], [WEATHER], "none", max_tokens=8) == plain


def test_a_streamed_conversation_is_the_same(tiny: Gem) -> None:
    for messages, tools in (
        ([user("What does print do?")], []),
        ([user("What is the weather in Oslo?")], [WEATHER]),
        ([user("Oslo?"), CALLED, RESULT], [WEATHER]),
    ):
        pieces, reply = helpers.run_out(tiny.stream_chat(messages, tools, max_tokens=20))
        assert reply == tiny.chat(messages, tools, max_tokens=20)
        assert "".join(pieces) == reply.text


@pytest.mark.parametrize(
    ("written", "text", "calls"),
    [
        ('{"name":"double","arguments":{"number":2}}', "", [ToolCall("double", {"number": 2})]),
        ('<tool_call>\n{"name":"double","arguments":{"number":2}}\n</tool_call>', "",
         [ToolCall("double", {"number": 2})]),
        ("plainly", "plainly", []),
        ("{braces} are text", "{braces} are text", []),
        ('{"name":"other","arguments":{}}', '{"name":"other","arguments":{}}', []),
        ('{"answer":"He said \\"\\u00fc\\"."}', 'He said "ü".', []),
        ('{"answer":"cut \\u00', "cut ", []),
    ],
)  # fmt: skip
def test_what_was_written_is_read(written: str, text: str, calls: list[ToolCall]) -> None:
    tools = Tools([DOUBLE])
    generation = Generation(written, (1, 2), "stop", 3)
    reply = tools.parse_reply(generation)
    assert (reply.text, list(reply.tool_calls)) == (text, calls)

    shown_pieces, streamed = helpers.run_out(tools.parse_stream(by_characters(generation)))
    assert streamed == reply
    assert "".join(shown_pieces) == text


@pytest.mark.parametrize(
    ("written", "call"),
    [
        ('{"name":"double","arguments":{"num', InvalidToolCall("double", '{"num', CUT)),
        ('<tool_call>\n{"name":"dou', InvalidToolCall("", "", CUT)),
        ("{", InvalidToolCall("", "", CUT)),
        ('{"name":"pick","arguments":{"of":["a","a"]}}',
         InvalidToolCall("pick", '{"of": ["a", "a"]}', "of: ['a', 'a'] has non-unique elements")),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_made_is_no_answer(written: str, call: InvalidToolCall) -> None:
    tools = Tools([DOUBLE, tool("pick", of={"type": "array", "uniqueItems": True})])
    generation = Generation(written, (1, 2), "length", 3)
    reply = tools.parse_reply(generation)
    assert (reply.text, reply.tool_calls, reply.invalid_tool_calls) == ("", (), (call,))

    assert helpers.run_out(tools.parse_stream(by_characters(generation))) == ([], reply)


def test_a_call_is_cut_by_max_tokens(tiny: Gem) -> None:
    [whole] = tiny.chat([user("Oslo?")], [WEATHER], "any").tool_calls
    reply = tiny.chat([user("Oslo?")], [WEATHER], "any", max_tokens=9)
    assert (reply.text, reply.finish_reason, reply.tool_calls) == ("", "length", ())
    [call] = reply.invalid_tool_calls
    assert call.error == "the call was cut after 9 tokens: raise max_tokens"
    assert call.name == whole.name
    assert json.dumps(whole.arguments, separators=(",", ":")).startswith(call.arguments)


# -- answers of a schema -------------------------------------------------------------------------

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Bergen"]}, "tags": {"type": "array"}},
    "required": ["city"],
}


SIZE = {"type": "object", "properties": {"size": {"enum": [1, 2]}}, "required": ["size"]}


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}},
        {"type": "json_object"},
        {"type": "text"},
        None,
    ],
)
def test_a_response_format_is_followed(tiny: Gem, response_format: Any) -> None:
    kind = (response_format or {}).get("type", "text")
    schema = {"json_schema": CITY, "json_object": {"type": "object"}, "text": None}[kind]
    reply = tiny.chat([user("Where is it?")], response_format=response_format, max_tokens=120)
    assert reply == tiny.chat([user("Where is it?")], schema=schema, max_tokens=120)
    if schema is not None:
        jsonschema.validate(json.loads(reply.text), schema)


@pytest.mark.parametrize(
    ("response_format", "match"),
    [
        ({"type": "xml"}, "response_format must be"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format must be"),
        ({"type": "json_object"}, "response_format and schema say the same"),
    ],
)
def test_other_response_formats_are_refused(tiny: Gem, response_format: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        tiny.chat([user("x")], response_format=response_format, schema={"type": "object"})


@pytest.mark.parametrize("template", [STRICT, WITH_TOOLS])
def test_tools_may_be_called_beside_an_answer_of_a_schema(
    gem_folder: Callable[..., Path], template: str
) -> None:
    folder = gem_folder("llama")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    helpers.build_tokenizer(chat_template=template).save_pretrained(folder)
    with gem_rag.load(folder) as gem:
        flag = tool("flag", on={"type": "boolean"})
        reply = gem.chat([user("a")], [flag], "any", schema=SIZE)
        assert [call.name for call in reply.tool_calls] == ["flag"]
        reply = gem.chat([user("a")], [flag], "none", schema=SIZE)
        jsonschema.validate(json.loads(reply.text), SIZE)
        if template == WITH_TOOLS:
            return
        called = {"function": {"name": "flag", "arguments": "{}"}}
        answered = {"role": "tool", "content": "b", "name": "flag"}
        said = [user("a"), {"role": "assistant", "content": "", "tool_calls": [called]}, answered]
        reply = gem.chat(said, [flag], schema=SIZE)  # the one tool has answered
    jsonschema.validate(json.loads(reply.text), SIZE)
    assert (reply.tool_calls, reply.schema_error) == ((), "")


@pytest.mark.parametrize("template", ["", WITH_TOOLS])
@pytest.mark.parametrize(
    ("written", "text", "error"),
    [
        ('{"city":"Oslo"}', '{"city":"Oslo"}', ""),
        ('{"city":"Rome"}', '{"city":"Rome"}', "city: 'Rome' is not one of"),
        ('{"city":"Os', '{"city":"Os', "the text was cut after 2 tokens"),
    ],
)
def test_an_answer_of_a_schema_is_read(template: str, written: str, text: str, error: str) -> None:
    tools = Tools([DOUBLE], template=template, answer=CITY)
    cut = "cut" in error
    if not template:
        written = f'{{"answer":{written}' + "}" * (not cut)
    generation = Generation(written, (1, 2), "length" if cut else "stop", 3)
    reply = tools.parse_reply(generation)
    assert reply.text.replace(" ", "") == text
    assert reply.schema_error.startswith(error)
    assert bool(reply.schema_error) == bool(error)
    assert not reply.tool_calls

    shown_pieces, streamed = helpers.run_out(tools.parse_stream(by_characters(generation)))
    assert streamed == reply
    assert "".join(shown_pieces) == reply.text


def test_other_names_of_roles_are_understood() -> None:
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    refusal = {"role": "ai", "content": [{"type": "refusal", "refusal": "No."}]}
    said = [{"role": "developer", "content": "a"}, {"role": "human", "content": "b"}, refusal]
    assert shown(said, template) == "[system]a[user]b[assistant]No."


@pytest.mark.parametrize(
    ("tools", "choice", "match"),
    [
        ([{"name": "f"}], "auto", "not of the form"),
        ([WEATHER], "get_wether", "did you mean 'get_weather'"),
        ([], "double", "tool_choice is 'double'"),
    ],
)
def test_other_tools_are_refused(tiny: Gem, tools: Any, choice: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        tiny.chat([user("x")], tools, choice)


def test_a_template_that_does_not_end_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gem_rag.core.tokenizer._TEMPLATE_SECONDS", 0.1)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    endless = SafeTokenizer(helpers.build_tokenizer(chat_template=loops))
    with pytest.raises(InputError, match=r"chat template refuses .* longer than 0.1 s"):
        endless.encode_chat([{"role": "user", "content": "hello"}])
