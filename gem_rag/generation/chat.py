"""Conversations in OpenAI's form: what the model is shown of them, and how its reply is read.

Models differ in what their chat templates accept (system messages, tools, neighboring messages of
one role), and some have no template; here every conversation gets a form that the model's own
template accepts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gem_rag._utils.deprecation import warn_renamed
from gem_rag._utils.suggestions import check_known
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError
from gem_rag.generation.grammars import (
    answer_grammar,
    call_grammar,
    parameters_of,
    schema_grammar,
)
from gem_rag.generation.sampling import Generation
from gem_rag.generation.schemas import Schema, fault_of

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
_TEMPLATE_ARGUMENTS = {"messages", "conversation", "tools", "tokenize", "add_generation_prompt"}
_TEXT_PARTS = ("text", "refusal")
_OTHER_ROLES = {"developer": "system", "human": "user", "ai": "assistant", "function": "tool"}
PLAIN_STOP = ("\n\nUser:",)  # ends the answer of a model without a chat template
_ANSWER_OPENING = '{"answer":'  # opens an answer where a call would be possible too
_CALL_OPENING = '{"name":'
_CALL_NAME = re.compile(r'\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"')
_CALL_WRAPPER = ("<tool_call>\n", "\n</tool_call>")  # around calls in many models' templates


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model calls.

    Attributes:
        name: The tool's name.
        arguments: Its arguments; they follow the tool's schema.
    """

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class InvalidToolCall:
    """A call that cannot be made.

    Attributes:
        name: The tool's name, as far as it was written.
        arguments: Its arguments as they were written.
        error: What is wrong: it was cut, or breaks a part of the schema that no grammar holds.
    """

    name: str
    arguments: str
    error: str


@dataclass(frozen=True)
class ChatReply(Generation):
    """A reply in a conversation.

    Attributes:
        tool_calls: The tools that the model calls; `text` is empty then.
        invalid_tool_calls: Calls that cannot be made; likewise.
    """

    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Deprecated: `tool_calls`."""
        warn_renamed("ChatReply.calls", "ChatReply.tool_calls")
        return self.tool_calls


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

    Raises:
        InputError: A tool is not of that form, or the choice names none of them.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        choice: str = "auto",
        template: str = "",
        answer: Schema | None = None,
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

    def __bool__(self) -> bool:
        return bool(self.definitions)

    def openings(self, messages: Sequence[Message]) -> list[str]:
        """How the reply of a model that was not trained on tools may begin; empty if there is no
        choice to make.

        A tool that has answered since the user last spoke is not called again: such a model would
        never stop calling it.
        """
        if self.shown_by_template or not self or not self._may_answer:
            return []
        called: set[str] = set()
        for message in messages:
            calls = message.get("tool_calls") or ()
            called = set() if _role(message) == "user" else called
            called |= {call["function"]["name"] for call in calls}
        self._callable = [f for f in self._callable if f["name"] not in called]
        # Without their closing quotes: tokens continue across those ('","'), and a token that the
        # model would not write there makes an opening look unlikely.
        calls = [f'{{"name":"{function["name"]}' for function in self._callable]
        return [*calls, _ANSWER_OPENING.removesuffix('":')]

    def choose(self, opening: int) -> None:
        """Restrict the reply to one of `openings`."""
        self._may_answer = opening == len(self._callable)
        self._callable = self._callable[opening : opening + 1]

    def grammar(self) -> str:
        """The grammar of the replies that are allowed."""
        rules, starts = [], []
        if self._callable:
            call = call_grammar(self._callable)
            rules, starts = [f"call: {call}"], ["call"]
            if self._wraps_calls:
                before, after = map(json.dumps, _CALL_WRAPPER)
                rules.append(f"  | {before} {call} {after}")
        if self._may_answer:
            starts.append("answer")
            rules.append(f"answer: {self._answer_grammar()}")
        return "\n".join([f"start: {' | '.join(starts)}", *rules])

    def _answer_grammar(self) -> str:
        if not self.shown_by_template:
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

    def parse_reply(self, generation: Generation) -> ChatReply:
        """Read a generated text as a reply."""
        fields = vars(generation)
        text = generation.text.strip()
        if not self:
            return ChatReply(**fields)
        if not self.shown_by_template and text.startswith(_ANSWER_OPENING):
            return self._parse_answer(generation, text)
        text = text.removeprefix(_CALL_WRAPPER[0].strip()).removesuffix(_CALL_WRAPPER[1].strip())
        call = self._parse_call(text.strip(), generation)
        if isinstance(call, ToolCall):
            return ChatReply(**{**fields, "text": ""}, tool_calls=(call,))
        if isinstance(call, InvalidToolCall):
            return ChatReply(**{**fields, "text": ""}, invalid_tool_calls=(call,))
        return ChatReply(**vars(generation.checked(self._answer)))

    def _parse_call(self, text: str, generation: Generation) -> ToolCall | InvalidToolCall | None:
        """A call that was written, or begun; None if the text is an answer."""
        try:
            state = json.loads(text)
        except ValueError:
            if not (text.startswith(_CALL_OPENING) or _CALL_OPENING.startswith(text)) or not text:
                return None
            name = _CALL_NAME.match(text)
            _, _, arguments = text.partition('"arguments":')
            error = f"the call was cut after {len(generation.tokens)} tokens: raise max_tokens"
            return InvalidToolCall(name[1] if name else "", arguments, error)
        if not isinstance(state, dict) or state.keys() != {"name", "arguments"}:
            return None
        function = self._functions.get(state["name"])
        if function is None:
            return None
        arguments = json.dumps(state["arguments"], ensure_ascii=False)
        if error := fault_of(arguments, parameters_of(function)):
            return InvalidToolCall(state["name"], arguments, error)
        return ToolCall(state["name"], state["arguments"])

    def _parse_answer(self, generation: Generation, text: str) -> ChatReply:
        """An answer in JSON, which may be cut."""
        fields = vars(generation)
        if self._answer is None:
            return ChatReply(**{**fields, "text": _answer_of(text)})
        try:
            text = json.dumps(json.loads(text)["answer"], ensure_ascii=False)
        except ValueError:
            text = text.removeprefix(_ANSWER_OPENING)
        return ChatReply(**vars(dataclasses.replace(generation, text=text).checked(self._answer)))

    def parse_stream(
        self, pieces: Generator[str, None, Generation]
    ) -> Generator[str, None, ChatReply]:
        """Pieces of an answer as they come; what begins like a call is held back to its end, and so
        is an answer of a schema."""
        written, shown = "", 0
        while True:
            try:
                written += next(pieces)
            except StopIteration as end:
                reply = self.parse_reply(end.value)
                if reply.text[shown:]:
                    yield reply.text[shown:]
                return reply
            if self and (self._answer is not None or _may_be_call(written)):
                continue
            in_json = self and written.startswith(_ANSWER_OPENING)
            answer = _answer_of(written) if in_json else written
            if answer[shown:]:
                yield answer[shown:]
                shown = len(answer)


def tokenize_conversation(
    tokenizer: SafeTokenizer,
    messages: Sequence[Message],
    tools: Tools,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """Token ids of a conversation, ready to be answered, by the model's own chat template, or
    plainly if it has none.

    Raises:
        InputError: A message is not of OpenAI's form, the template rejects the messages, or an
            option of the template has the name of one that is given already.
    """
    check_known(
        set(template_kwargs) & _TEMPLATE_ARGUMENTS, (), "chat_template_kwargs may not hold",
        ": gem-rag gives it itself",
    )  # fmt: skip
    normalized = merge_adjacent_messages([_normalize(message) for message in messages])
    if not tools.shown_by_template:
        normalized = merge_adjacent_messages(_write_out_tools(normalized, tools))
    elif tools:
        template_kwargs = {**template_kwargs, "tools": tools.definitions}
    if not tokenizer.chat_template:
        return tokenizer.encode([_plain_conversation(normalized)])[0].ids
    try:
        return tokenizer.encode_chat(normalized, **template_kwargs)
    except InputError:
        without_system = merge_adjacent_messages(_fold_system_messages(normalized))
        if without_system == normalized:
            raise
        return tokenizer.encode_chat(without_system, **template_kwargs)


def response_schema(response_format: Mapping[str, Any] | None) -> Schema | None:
    """The JSON schema that OpenAI's `response_format` asks for; None for text.

    Raises:
        InputError: It is not of OpenAI's form.
    """
    kind = (response_format or {"type": "text"}).get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema = (response_format or {}).get("json_schema")
    if kind == "json_schema" and isinstance(schema, Mapping) and "schema" in schema:
        return dict(schema["schema"])
    raise InputError(
        'response_format must be {"type": "json_object"} or {"type": "json_schema", '
        f'"json_schema": {{"name": ..., "schema": ...}}}}, not {str(response_format)[:80]}'
    )


def format_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as JSON, in the form that the grammar prescribes."""
    call = {"name": name, "arguments": arguments}
    return json.dumps(call, ensure_ascii=False, separators=(",", ":"))


def merge_adjacent_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Merge neighboring messages of one role, which strict templates require; tool results stay
    separate."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        last = merged[-1] if merged else {}
        plain = message.keys() == {"role", "content"} == last.keys()
        if plain and message["role"] == last["role"]:
            last["content"] = "\n\n".join(filter(None, (last["content"], message["content"])))
        else:
            merged.append(dict(message))
    return merged


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


def _normalize(message: Message) -> dict[str, Any]:
    """The message with a string as its content; raises InputError if it is not of OpenAI's form."""
    role, content = _role(message), message.get("content")
    if isinstance(content, list):
        parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
        for part in parts:
            if part.get("type") not in _TEXT_PARTS:
                raise InputError(f"a message holds {part.get('type')!r}: the model reads text only")
        content = "".join(part[part["type"]] for part in parts)
    if not isinstance(content, str | None):
        raise InputError(f"a message's content is {type(content).__name__}: give a string")
    extra = {key: message[key] for key in _extra_keys(role) if message.get(key)}
    if "tool_calls" in extra:  # templates expect arguments as a mapping, clients send JSON
        extra["tool_calls"] = [_parse_arguments(call) for call in extra["tool_calls"]]
    return {"role": role, "content": content or "", **extra}


def _role(message: Message) -> str:
    role = message.get("role")
    role = _OTHER_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise InputError(f"a message has the role {role!r}: use one of {', '.join(ROLES)}")
    return str(role)


def _extra_keys(role: str) -> tuple[str, ...]:
    return {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}.get(role, ())


def _parse_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"] or "{}")
        except ValueError:
            raise InputError(
                f"the arguments of a call of {function.get('name')!r} are not JSON: "
                f"{function['arguments'][:60]!r}"
            ) from None
    return {**call, "type": "function", "function": function}


def _write_out_tools(messages: Sequence[Message], tools: Tools) -> list[Message]:
    """Tools, calls and results as plain messages, system messages first."""
    names = {
        call.get("id"): call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls", ())
    }
    plain: list[Message] = [{"role": "system", "content": tools.describe()}] if tools else []
    for message in messages:
        content = message["content"]
        for call in message.get("tool_calls", ()):
            function = call["function"]
            text = format_call(function["name"], function.get("arguments", {}))
            content = "\n".join(filter(None, (content, text)))
        role = message["role"]
        if role == "tool":
            name = message.get("name") or names.get(message.get("tool_call_id"), "The tool")
            role, content = "user", f"{name} returned: {content}"
        plain.append({"role": role, "content": content})
    return sorted(plain, key=lambda message: message["role"] != "system")


def _fold_system_messages(messages: Sequence[Message]) -> list[Message]:
    """The messages with the system messages' text as a first user message."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    others = [m for m in messages if m["role"] != "system"]
    return [{"role": "user", "content": system}, *others] if system else others


def _may_be_call(text: str) -> bool:
    text, before = text.strip(), _CALL_WRAPPER[0].strip()
    if text.startswith(_ANSWER_OPENING):
        return False
    return not text or text.startswith(("{", before)) or before.startswith(text)


def _plain_conversation(messages: Sequence[Message]) -> str:
    """The conversation as text, for a model without a template."""
    speakers = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    turns = [f"{speakers[message['role']]}{message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def _signature(function: Mapping[str, Any]) -> str:
    parameters = function.get("parameters") or {}
    required = parameters.get("required", ())
    arguments = [
        f"{name}{'' if name in required else '?'}: {schema.get('type', 'any')}"
        for name, schema in parameters.get("properties", {}).items()
    ]
    return f"{function['name']}({', '.join(arguments)})"
