"""The forms in which gem-tiny reads passages and questions, and answers.

They are what `gem_rag.rag.answer` sends and what the chat template renders. Knows nothing about
data or models.
"""

from __future__ import annotations

from collections.abc import Sequence

from gem_rag.rag.answer import REFUSAL, filled

CHAT_TEMPLATE = """\
{% for message in messages -%}
{% if message.role == "system" %}Context:
{{ message.content }}

{% elif message.role == "user" %}Question: {{ message.content }}
Answer:{% else %} {{ message.content }}

{% endif %}{% endfor %}"""
ANSWER_PROMPT = "Context:\n{passages}\n\nQuestion: {question}\nAnswer:"
ANSWER_MARGIN = 0.05  # it finds better than it reads; how it was chosen: README.md


def prompt(passages: Sequence[str], question: str) -> str:
    """A question over passages, to be answered."""
    return filled(ANSWER_PROMPT, question, passages)


def completion(answer: str | None, number: int) -> str:
    """What stands behind the prompt: words of passage `number` and its citation, or a refusal."""
    return f" {answer} [{number}]" if answer else f" {REFUSAL}"
