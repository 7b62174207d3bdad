"""The prompt of an answer from passages, and its head: all that comes before the first passage."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gem_rag.core.config import GemConfig
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError

INSTRUCTIONS = (
    "Answer the question from the passages below, in their own words where you can, and cite "
    "them like [1]. If they do not answer it, say that they do not."
)
_DEFAULT = f"{INSTRUCTIONS}\n\n{{passages}}\n\nQuestion: {{question}}\nAnswer:"
_MARK = "\ufdd1"  # a noncharacter, which no prompt holds


def answer_form(config: GemConfig) -> str:
    """A checkpoint's prompt, or the usual one, with {passages} and {question}."""
    return config.answer_prompt or _DEFAULT


def fill_prompt(form: str, question: str, passages: Sequence[str]) -> str:
    """Fill a prompt's {passages}, which are numbered, and its {question}."""
    numbered = "\n\n".join(f"[{n}] {passage}" for n, passage in enumerate(passages, start=1))
    # Split, not str.format: passages and questions may hold braces.
    values = {"{passages}": numbered, "{question}": question}
    parts = re.split(r"(\{passages\}|\{question\})", form)
    return "".join(values.get(part, part) for part in parts)


def answer_head(tokenizer: SafeTokenizer, config: GemConfig) -> str:
    """The text of an answer's prompt up to its first passage, chat template included.

    As a document prompt (`SafeTokenizer.encode_prompted`) it makes the tokens that a passage is
    embedded from those that an answer's prompt begins with, so that keys and values can be shared.

    Raises:
        InputError: The prompt has the question before the passages, or no passages.
    """
    form = answer_form(config)
    before, found, _ = form.partition("{passages}")
    if not found or "{question}" in before:
        raise InputError(
            "answer_prompt has no fixed text before its passages, which answer_head needs: put "
            "{passages} into it, before {question}"
        )
    prompt = fill_prompt(form, "?", [_MARK])
    if config.answer_prompt is None and tokenizer.chat_template:
        prompt = tokenizer.render_chat([{"role": "user", "content": prompt}])
    return prompt.partition(_MARK)[0]
