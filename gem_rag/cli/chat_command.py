"""`gem-rag chat`: a conversation on the terminal, or with lines from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from gem_rag.cli.common import (
    DEFAULT_MODEL,
    ModelNameOption,
    TemperatureOption,
    load_model,
    print_text,
)

if TYPE_CHECKING:
    from gem_rag.model import Gem


def chat(
    model: ModelNameOption = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens in an answer.")] = 256,
    temperature: TemperatureOption = 0.0,
) -> None:
    """Chat with a model, one line at a time; an empty line or Ctrl-D ends."""
    gem = load_model(model)
    room = min(max_tokens, gem.context_length // 2)
    messages = [{"role": "system", "content": system}] if system else []
    fixed = len(messages)
    for line in _read_lines():
        messages.append({"role": "user", "content": line})
        _drop_oldest_turns(gem, messages, fixed, room)
        answer = ""
        for piece in gem.stream_chat(messages, max_tokens=room, temperature=temperature):
            answer += piece
            print_text(piece, end="")
        print("\n")
        messages.append({"role": "assistant", "content": answer.strip()})


def _read_lines() -> Iterator[str]:
    prompts = sys.stdin.isatty()
    while True:
        if prompts:
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _drop_oldest_turns(gem: Gem, messages: list[dict[str, str]], fixed: int, room: int) -> None:
    """Drop the oldest turns until there is room for an answer."""
    while (
        len(messages) > fixed + 1 and len(gem.tokenize_chat(messages)) + room > gem.context_length
    ):
        del messages[fixed : fixed + 2]
