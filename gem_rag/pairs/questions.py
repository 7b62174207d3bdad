"""Questions that a language model writes about a passage: prompts, and what its answers say."""

from __future__ import annotations

import json
import re
from typing import Any

from gem_rag.model import Gem
from gem_rag.pairs.kinds import KINDS

MAX_TOKENS = 64  # of an answer
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"question": {"type": "string", "minLength": 8, "maxLength": 160}},
    "required": ["question"],
}
_EXAMPLE = (
    "A program that is started in a terminal gets the hangup signal when the terminal is closed, "
    "and ends. nohup makes it ignore that signal, so that it goes on running after its user has "
    "logged out; what it writes goes to the file nohup.out."
)
_COPIED = 5  # words in a row


def word_runs(text: str, length: int) -> set[tuple[str, ...]]:
    """All runs of so many words of a text, in lower case."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


_PROMPT_WORDS = frozenset(
    run
    for text in (_EXAMPLE, *(part for kind in KINDS.values() for part in kind))
    for run in word_runs(text, _COPIED)
)


def prompt_for(gem: Gem, passage: str, kind: str) -> list[int]:
    """The prompt for a question, as token ids: by the model's chat template, or with an example.

    Args:
        gem: The model.
        passage: What the question is about.
        kind: One of `KINDS`.
    """
    task = f"Write {KINDS[kind][0]}, which this text answers. Name things; never say 'the text'."
    if gem.has_chat_template:
        example = [
            {"role": "user", "content": f"{_EXAMPLE}\n\n{task}"},
            {"role": "assistant", "content": _answer(KINDS[kind][1])},
        ]
        messages = [*example, {"role": "user", "content": f"{passage}\n\n{task}"}]
        return gem.tokenize_chat(messages)
    shown = f"Text: {_EXAMPLE}\nQuestion ({KINDS[kind][0]}): {_answer(KINDS[kind][1])}"
    return gem.tokenize(f"{shown}\n\nText: {passage}\nQuestion ({KINDS[kind][0]}):")


def read_question(text: str) -> str | None:
    """The question in a model's answer, or None if it is unfinished."""
    try:
        question = json.loads(text)["question"]
    except (ValueError, KeyError, TypeError):
        return None
    return " ".join(question.split()) or None


def repeats_prompt(question: str) -> bool:
    """Whether a model has copied the prompt's words instead of asking."""
    return any(words in _PROMPT_WORDS for words in word_runs(question, _COPIED))


def _answer(question: str) -> str:
    return json.dumps({"question": question})
