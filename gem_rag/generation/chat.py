"""Conversations in OpenAI's form: what the model is shown of them, and what it writes back.

Models differ in what their chat templates take (system messages, tools, neighbours of one role),
and some have none; here every conversation gets a form that the model's own template takes. Knows
nothing about engines.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError
from gem_rag.generation.grammars import closed, tool_call_schema
from gem_rag.generation.sampling import Generation

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
PLAIN_STOP = ("\n\nUser:",)  # where an answer ends that no template ends
_ANSWER = '{"answer":'  # how the form begins that holds a string instead of a call
_ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}
_WRAPPER = ("<tool_call>\n", "\n</tool_call>")  # that templates of many models show calls in


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model asks for, and its arguments, which follow the tool's schema."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ChatReply(Generation):
    """An answer in a conversation.

    calls: tools that the model asks for; `text` is empty then.
    """

    calls: tuple[ToolCall, ...] = ()


class Tools:
    """What a model may call, and must, and how it writes that down.

    tools: {"type": "function", "function": {"name": ..., "description": ..., "parameters": JSON
        schema}} each.
    choice: "auto" lets the model choose between a call and an answer, "any" makes it call one of
        them, a name that one, "none" none.
    template: the model's chat template. Where it shows tools, the model was made to begin a call
        by itself; elsewhere it fills in a form, the likeliest of `forms`.

    Raises InputError if a tool is not of that form, or the choice names none of them.
    """

    def __init__(self, tools: Sequence[Tool], choice: str = "auto", template: str = "") -> None:
        self.shown = [dict(tool) for tool in tools] if choice != "none" else []
        self._functions = {f["name"]: f for f in map(_function, self.shown)}
        if choice not in ("auto", "any", "none", *self._functions):
            known = [*self._functions, "auto", "any", "none"]
            raise InputError(f"tool_choice is {choice!r}{did_you_mean(choice, known)}: use one of "
                             f"{', '.join(known)}")  # fmt: skip
        named = self._functions.get(choice)
        self._callable = [named] if named else list(self._functions.values())
        self._may_answer = choice == "auto"
        self.made_for_tools = "tools" in template
        self._wrapped = _WRAPPER[0].strip() in template

    def __bool__(self) -> bool:
        return bool(self.shown)

    def forms(self, messages: Sequence[Message]) -> list[str]:
        """How a model that was not made for tools may begin; nothing if that is no choice.

        A tool that has answered since the user last spoke is not called again: such a model would
        never stop asking.
        """
        if self.made_for_tools or not self or not self._may_answer:
            return []
        asked: set[str] = set()
        for message in messages:
            calls = message.get("tool_calls") or ()
            asked = set() if message["role"] == "user" else asked
            asked |= {call["function"]["name"] for call in calls}
        self._callable = [f for f in self._callable if f["name"] not in asked]
        # Without the quotes that end them: tokens go on over those ('","'), and a token that the
        # model would not write there makes a form look unlikely.
        return [*(f'{{"name":"{f["name"]}' for f in self._callable), _ANSWER.removesuffix('":')]

    def choose(self, form: int) -> None:
        """Keep to one of `forms`."""
        self._may_answer = form == len(self._callable)
        self._callable = self._callable[form : form + 1]

    def grammar(self, max_tokens: int) -> str:
        """What the model may write."""
        rules, starts = [], []
        if self._callable:
            schema = json.dumps(closed(tool_call_schema(self._callable), max_tokens))
            rules, starts = [f"call: %json {schema}"], ["call"]
            if self._wrapped:
                before, after = map(json.dumps, _WRAPPER)
                rules.append(f"  | {before} %json {schema} {after}")
        if self._may_answer:
            starts.append("answer")
            if self.made_for_tools:  # anything that does not begin like a call
                rules.append(f"answer: /([^{{{'<' if self._wrapped else ''}](.|\\n)*)?/")
            else:
                rules.append(f"answer: %json {json.dumps(closed(_ANSWER_SCHEMA, max_tokens))}")
        return "\n".join([f"start: {' | '.join(starts)}", *rules])

    def described(self) -> str:
        """For a model whose template does not show tools, in few words."""
        lines = [f"{_signature(f)}: {f.get('description', '')}" for f in self._functions.values()]
        forms = '{"name": ..., "arguments": {...}} or {"answer": ...}'
        return "\n".join(["Tools:", *lines, f"Write {forms}."])

    def read(self, generation: Generation) -> ChatReply:
        """What was generated as a reply; a call that is not whole stays text."""
        text = generation.text.strip().removeprefix(_WRAPPER[0].strip())
        fields = vars(generation)
        if self and text.startswith(_ANSWER):
            return ChatReply(**{**fields, "text": _answered(text)})
        try:
            call = json.loads(text.removesuffix(_WRAPPER[1].strip()))
            called = ToolCall(call["name"], dict(call["arguments"]))
        except (ValueError, TypeError, KeyError):
            return ChatReply(**fields)
        if called.name not in self._functions:
            return ChatReply(**fields)
        return ChatReply(**{**fields, "text": ""}, calls=(called,))

    def read_stream(
        self, pieces: Generator[str, None, Generation]
    ) -> Generator[str, None, ChatReply]:
        """Pieces of an answer as they come; what begins like a call is held back to its end."""
        written, shown = "", 0
        while True:
            try:
                written += next(pieces)
            except StopIteration as end:
                reply = self.read(end.value)
                if reply.text[shown:]:
                    yield reply.text[shown:]
                return reply
            if self and _may_be_call(written):
                continue
            answer = _answered(written) if self and written.startswith(_ANSWER) else written
            if answer[shown:]:
                yield answer[shown:]
                shown = len(answer)


def _function(tool: Tool) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        form = '{"type": "function", "function": {"name": ...}}'
        raise InputError(f"a tool is not of the form {form}: {str(tool)[:80]}")
    return dict(function)


def _answered(text: str) -> str:
    """The answer in a form that may not be whole."""
    body = text.removeprefix(_ANSWER)
    for cut in range(min(8, len(body))):  # half an escape at the end
        try:
            answer, _ = json.JSONDecoder(strict=False).raw_decode(body[: len(body) - cut] + '"')
        except ValueError:
            continue
        return str(answer)
    return ""


def encode(text: SafeTokenizer, messages: Sequence[Message], tools: Tools) -> list[int]:
    """Token ids of a conversation, ready to be answered, by the model's own chat template, or
    plainly where it has none.

    Raises InputError if a message is not of the form, or the template refuses the messages.
    """
    shown = merged([_checked(message) for message in messages])
    kwargs: dict[str, Any] = {"tools": tools.shown} if tools else {}
    if not tools.made_for_tools:
        shown, kwargs = merged(_without_tools(shown, tools)), {}
    if not text.template:
        return text.encode([_plain(shown)])[0].ids
    try:
        return text.encode_chat(shown, **kwargs)
    except InputError:
        folded = merged(_without_system(shown))
        if folded == shown:
            raise
        return text.encode_chat(folded, **kwargs)


def written_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the grammar has it written."""
    call = {"name": name, "arguments": arguments}
    return json.dumps(call, ensure_ascii=False, separators=(",", ":"))


def merged(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Neighbours of one role as one message, which strict templates ask for; results of tools
    stay apart."""
    found: list[dict[str, Any]] = []
    for message in messages:
        last = found[-1] if found else {}
        plain = message.keys() == {"role", "content"} == last.keys()
        if plain and message["role"] == last["role"]:
            last["content"] = "\n\n".join(filter(None, (last["content"], message["content"])))
        else:
            found.append(dict(message))
    return found


def _checked(message: Message) -> dict[str, Any]:
    """A message whose content is a string. Raises InputError if it is not of OpenAI's form."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InputError(f"a message has the role {role!r}: use one of {', '.join(ROLES)}")
    if isinstance(content, list):
        parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
        for part in parts:
            if part.get("type") != "text":
                raise InputError(f"a message holds {part.get('type')!r}: the model reads text only")
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str | None):
        raise InputError(f"a message's content is {type(content).__name__}: give a string")
    kept = {key: message[key] for key in ("tool_calls", "tool_call_id", "name") if message.get(key)}
    if role != "assistant" or not kept.get("tool_calls"):
        kept.pop("tool_calls", None)
    else:  # templates want arguments as a mapping, clients send them as JSON
        kept["tool_calls"] = [_with_arguments(call) for call in kept["tool_calls"]]
    if role != "tool":
        kept.pop("tool_call_id", None)
        kept.pop("name", None)
    return {"role": role, "content": content or "", **kept}


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
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


def _without_tools(messages: Sequence[Message], tools: Tools) -> list[Message]:
    """Tools, calls and results as plain messages."""
    names = {call.get("id"): call["function"]["name"]
             for message in messages for call in message.get("tool_calls", ())}  # fmt: skip
    found: list[Message] = [{"role": "system", "content": tools.described()}] if tools else []
    for message in messages:
        content = message["content"]
        for call in message.get("tool_calls", ()):
            function = call["function"]
            written = written_call(function["name"], function.get("arguments", {}))
            content = "\n".join(filter(None, (content, written)))
        role = message["role"]
        if role == "tool":
            name = message.get("name") or names.get(message.get("tool_call_id"), "The tool")
            role, content = "user", f"{name} returned: {content}"
        found.append({"role": role, "content": content})
    return sorted(found, key=lambda message: message["role"] != "system")


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """What system messages say, at the head of what the user says first."""
    said = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    rest = [m for m in messages if m["role"] != "system"]
    return [{"role": "user", "content": said}, *rest] if said else rest


def _may_be_call(text: str) -> bool:
    text, before = text.strip(), _WRAPPER[0].strip()
    if text.startswith(_ANSWER):
        return False
    return not text or text.startswith(("{", before)) or before.startswith(text)


def _plain(messages: Sequence[Message]) -> str:
    """For a model without a template."""
    heads = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    said = [f"{heads[message['role']]}{message['content']}" for message in messages]
    return "\n\n".join([*said, "Assistant:"])


def _signature(function: Mapping[str, Any]) -> str:
    parameters = function.get("parameters") or {}
    required = parameters.get("required", ())
    named = [
        f"{name}{'' if name in required else '?'}: {schema.get('type', 'any')}"
        for name, schema in parameters.get("properties", {}).items()
    ]
    return f"{function['name']}({', '.join(named)})"
