"""Tools in a conversation: what a model may write to call them, and how that is read."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from gem_rag._utils.suggestions import check_known
from gem_rag.core.arrays import FloatArray
from gem_rag.errors import InputError
from gem_rag.generation.grammars import (
    answer_grammar,
    call_grammar,
    parameters_of,
    schema_grammar,
)
from gem_rag.generation.reasoning import Reasoning
from gem_rag.generation.replies import ChatReply, InvalidToolCall, ToolCall
from gem_rag.generation.sampling import Generation
from gem_rag.generation.schemas import Schema, fault_of

Tool = Mapping[str, Any]

_ANSWER_OPENING = '{"answer":'  # opens an answer where a call would be possible too
_CALL_OPENING = '{"name":'
_CALL_NAME = re.compile(r'\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"')
_CALL_WRAPPER = ("<tool_call>\n", "\n</tool_call>")  # around calls in many models' templates
_MOST_AT_ONCE = 16  # calls in a reply
_MOST_IN_TURN = 3  # calls of one tool since the user last spoke, by a model not trained on tools
_STEP_MARGIN = 0.1  # in nats, by which such a model must prefer a further call to an answer


class Tools:
    """The tools a model may or must call, and how it writes a call.

    Args:
        tools: {"type": "function", "function": {"name": ..., "description": ..., "parameters":
            JSON schema}} each.
        choice: "auto" lets the model choose between a call and an answer, "any" makes it call one
            of the tools, a name that one, "none" none.
        template: The model's chat template. If it shows tools, the model was trained to begin a
            call by itself; otherwise it completes the most likely of `openings`.
        answer: The JSON schema of an answer; None for text.
        parallel: Whether a reply may have several calls, of a model that was trained on tools.
        made: The calls since the user last spoke. A model that was not trained on tools may make
            further ones, but none of them again: it would never stop.

    Attributes:
        reasoning: How the model reasons before it calls or answers, if it does.

    Raises:
        InputError: A tool is not of that form, or the choice names none of them.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        choice: str = "auto",
        template: str = "",
        answer: Schema | None = None,
        parallel: bool = True,
        made: Sequence[ToolCall] = (),
    ) -> None:
        self.definitions = [dict(tool) for tool in tools] if choice != "none" else []
        self._functions = {f["name"]: f for f in map(_function_of, self.definitions)}
        known = [*self._functions, "auto", "any", "none"]
        check_known([choice], known, "tool_choice is", f": use one of {', '.join(known)}")
        required = self._functions.get(choice)
        self._callable = [required] if required else list(self._functions.values())
        self._may_answer = choice == "auto"
        self._answer = answer
        self.shown_by_template = "tools" in template
        self._wraps_calls = _CALL_WRAPPER[0].strip() in template
        self._several = parallel and self.shown_by_template and not required
        self._made = made
        self.reasoning: Reasoning | None = None

    def __bool__(self) -> bool:
        return bool(self.definitions)

    # -- what may be written -------------------------------------------------------------------

    def openings(self) -> list[str]:
        """How the reply of a model that was not trained on tools may begin; empty if there is no
        choice to make."""
        if self.shown_by_template or not self or not self._may_answer:
            return []
        names = [call.name for call in self._made]
        self._callable = [f for f in self._callable if names.count(f["name"]) < _MOST_IN_TURN]
        # Without their closing quotes: tokens continue across those ('","'), and a token that the
        # model would not write there makes an opening look unlikely.
        calls = [f'{{"name":"{function["name"]}' for function in self._callable]
        return [*calls, _ANSWER_OPENING.removesuffix('":')]

    def choose(self, likelihoods: FloatArray) -> None:
        """Restrict the reply to the likeliest of `openings`: float32 [openings], in nats."""
        likelihoods = likelihoods.copy()
        likelihoods[-1] += _STEP_MARGIN if self._made else 0.0
        best = int(likelihoods.argmax())
        self._may_answer = best == len(self._callable)
        self._callable = self._callable[best : best + 1]

    def repeats(self, reply: ChatReply) -> bool:
        """Whether a model that was not trained on tools makes a call again; then only an answer is
        left to it."""
        if self.shown_by_template or not any(call in self._made for call in reply.tool_calls):
            return False
        self._callable, self._may_answer = [], True
        return True

    @property
    def constrains(self) -> bool:
        """Whether a reply is held to `grammar`: a schema alone needs none beside its own, unless
        the model reasons first."""
        return bool(self) or (self._answer is not None and self.reasoning is not None)

    def grammar(self) -> str:
        """The grammar of the replies that are allowed."""
        rules, starts = [], []
        if self._callable:
            call = call_grammar(self._callable)
            more = f' ("\\n" call){{0,{_MOST_AT_ONCE - 1}}}' if self._several else ""
            rules, starts = [f"calls: call{more}", f"call: {call}"], ["calls"]
            if self._wraps_calls:
                before, after = map(json.dumps, _CALL_WRAPPER)
                rules.append(f"  | {before} {call} {after}")
        if self._may_answer:
            starts.append("answer")
            rules.append(f"answer: {self._answer_grammar()}")
        start = self.reasoning.rules("reply") if self.reasoning else "start: reply"
        return "\n".join([start, f"reply: {' | '.join(starts)}", *rules])

    def _answer_grammar(self) -> str:
        if self and not self.shown_by_template:
            return answer_grammar(self._answer or {"type": "string"})
        if self._answer is not None:
            return schema_grammar(self._answer)
        # Anything that does not begin like a call.
        return f"/([^{{{'<' if self._wraps_calls else ''}](.|\\n)*)?/"

    def describe(self) -> str:
        """The tools in a few words, for a model whose template does not show them."""
        lines = [f"{_signature(f)}: {f.get('description', '')}" for f in self._functions.values()]
        forms = '{"name": ..., "arguments": {...}} or {"answer": ...}'
        return "\n".join(["Tools:", *lines, f"Write {forms}."])

    # -- what has been written -----------------------------------------------------------------

    def parse_reply(self, generation: Generation) -> ChatReply:
        """Read a generated text as a reply."""
        reply = ChatReply(**vars(generation))
        if self.reasoning:
            reasoning, text, _ = self.reasoning.split(reply.text)
            reply = dataclasses.replace(reply, text=text, reasoning=reasoning)
        if not self:
            return reply.checked(self._answer)
        text = reply.text.strip()
        if not self.shown_by_template and text.startswith(_ANSWER_OPENING):
            return self._parse_answer(reply, text)
        calls = list(self._parse_calls(text, len(reply.tokens)))
        if not calls:
            return reply.checked(self._answer)
        return dataclasses.replace(
            reply,
            text="",
            tool_calls=tuple(call for call in calls if isinstance(call, ToolCall)),
            invalid_tool_calls=tuple(call for call in calls if isinstance(call, InvalidToolCall)),
        )

    def _parse_calls(self, text: str, tokens: int) -> Iterator[ToolCall | InvalidToolCall]:
        """Calls that were written, the last of which may be unfinished; none if the text is an
        answer."""
        before, after = (part.strip() for part in _CALL_WRAPPER)
        first = True
        while text := text.strip().removeprefix(before).strip():
            try:
                state, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                begun = text.startswith(_CALL_OPENING) or _CALL_OPENING.startswith(text)
                if begun or (first and before.startswith(text)):
                    yield _unfinished(text, tokens)
                return
            call = self._read_call(state)
            if call is None:
                return
            yield call
            text, first = text[end:].strip().removeprefix(after), False

    def _read_call(self, state: Any) -> ToolCall | InvalidToolCall | None:
        """A call in a JSON value, if it is one."""
        if not isinstance(state, dict) or state.keys() != {"name", "arguments"}:
            return None
        function = self._functions.get(state["name"])
        if function is None:
            return None
        arguments = json.dumps(state["arguments"], ensure_ascii=False)
        if error := fault_of(arguments, parameters_of(function)):
            return InvalidToolCall(state["name"], arguments, error)
        return ToolCall(state["name"], state["arguments"])

    def _parse_answer(self, reply: ChatReply, text: str) -> ChatReply:
        """An answer in JSON, which may be cut."""
        if self._answer is None:
            return dataclasses.replace(reply, text=_answer_of(text))
        try:
            text = json.dumps(json.loads(text)["answer"], ensure_ascii=False)
        except ValueError:
            text = text.removeprefix(_ANSWER_OPENING)
        return dataclasses.replace(reply, text=text).checked(self._answer)

    def parse_stream(
        self, pieces: Generator[str, None, Generation]
    ) -> Generator[str, None, ChatReply]:
        """Pieces of an answer as they come; reasoning is held back, and to its end what begins like
        a call or is an answer of a schema."""
        written, shown = "", 0
        while True:
            try:
                written += next(pieces)
            except StopIteration as end:
                reply = self.parse_reply(end.value)
                if reply.text[shown:]:
                    yield reply.text[shown:]
                return reply
            answer = self._showable(written)
            if answer[shown:]:
                yield answer[shown:]
                shown = len(answer)

    def _showable(self, text: str) -> str:
        """As much of an unfinished reply as is surely text of its answer."""
        if self.reasoning:
            _, text, begun = self.reasoning.split(text)
            if not begun or self._answer is not None:
                return ""
        if not self:
            return text
        if self._answer is not None or _may_be_call(text):
            return ""
        return _answer_of(text) if text.startswith(_ANSWER_OPENING) else text


def calls_since_user(messages: Sequence[Mapping[str, Any]]) -> list[ToolCall]:
    """The calls after the last message of a user, in a conversation of OpenAI's form."""
    made: list[ToolCall] = []
    for message in messages:
        if message["role"] == "user":
            made = []
        for call in message.get("tool_calls") or ():
            made.append(ToolCall(call["function"]["name"], call["function"].get("arguments") or {}))
    return made


def format_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as JSON, in the form that the grammar prescribes."""
    call = {"name": name, "arguments": arguments}
    return json.dumps(call, ensure_ascii=False, separators=(",", ":"))


def _function_of(tool: Tool) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        form = '{"type": "function", "function": {"name": ...}}'
        raise InputError(f"a tool is not of the form {form}: {str(tool)[:80]}")
    return dict(function)


def _answer_of(text: str) -> str:
    """The answer in a JSON text that may be incomplete."""
    body = text.removeprefix(_ANSWER_OPENING)
    for cut in range(min(8, len(body))):  # half an escape sequence at the end
        try:
            answer, _ = json.JSONDecoder(strict=False).raw_decode(body[: len(body) - cut] + '"')
        except ValueError:
            continue
        return str(answer)
    return ""


def _may_be_call(text: str) -> bool:
    text, before = text.strip(), _CALL_WRAPPER[0].strip()
    if text.startswith(_ANSWER_OPENING):
        return False
    return not text or text.startswith(("{", before)) or before.startswith(text)


def _signature(function: Mapping[str, Any]) -> str:
    parameters = function.get("parameters") or {}
    required = parameters.get("required", ())
    arguments = [
        f"{name}{'' if name in required else '?'}: {schema.get('type', 'any')}"
        for name, schema in parameters.get("properties", {}).items()
    ]
    return f"{function['name']}({', '.join(arguments)})"


def _unfinished(text: str, tokens: int) -> InvalidToolCall:
    """A call that was cut after so many tokens."""
    name = _CALL_NAME.match(text)
    _, _, arguments = text.partition('"arguments":')
    error = f"the call was cut after {tokens} tokens: raise max_tokens"
    return InvalidToolCall(name[1] if name else "", arguments, error)
