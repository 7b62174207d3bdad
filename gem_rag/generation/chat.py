"""Conversations in OpenAI's form: what the model is shown of them, and how its reply is read.

Models differ in what their chat templates accept (system messages, tools, neighboring messages of
one role), and some have no template; here every conversation gets a form that the model's own
template accepts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gem_rag._utils.suggestions import check_known
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError
from gem_rag.generation.schemas import Schema
from gem_rag.generation.tools import Tools, format_call

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
_TEMPLATE_ARGUMENTS = {"messages", "conversation", "tools", "tokenize", "add_generation_prompt"}
_TEXT_PARTS = ("text", "refusal")
_OTHER_ROLES = {"developer": "system", "human": "user", "ai": "assistant", "function": "tool"}
PLAIN_STOP = ("\n\nUser:",)  # ends the answer of a model without a chat template
_NO_QUESTION = "N/A"


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
    normalized = merge_adjacent_messages(normalize(messages))
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


def normalize(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages with strings as contents and mappings as arguments.

    Raises:
        InputError: A message is not of OpenAI's form.
    """
    return [_normalize(message) for message in messages]


def without_question(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation in which the user asks nothing: how likely a reply is after it says how likely
    its words are whatever was asked (contextual calibration, arXiv 2102.09690)."""
    return [
        {**message, "content": _NO_QUESTION} if message["role"] == "user" else dict(message)
        for message in messages
    ]


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


def _plain_conversation(messages: Sequence[Message]) -> str:
    """The conversation as text, for a model without a template."""
    speakers = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    turns = [f"{speakers[message['role']]}{message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])
