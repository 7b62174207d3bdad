"""gem-tiny's prompt formats: what `gem_rag.rag.answer` sends and what the chat template renders."""

from __future__ import annotations

from collections.abc import Sequence

from gem_rag.generation.answer_prompt import fill_prompt
from gem_rag.rag.answer import REFUSAL

CHAT_TEMPLATE = """\
{% for message in messages -%}
{% if message.role == "system" %}Context:
{{ message.content }}

{% elif message.role == "user" %}Question: {{ message.content }}
Answer:{% else %} {{ message.content }}

{% endif %}{% endfor %}"""
ANSWER_PROMPT = "Context:\n{passages}\n\nQuestion: {question}\nAnswer:"
ANSWER_MARGIN = 0.05  # chosen on held-out questions, see README.md


def format_prompt(passages: Sequence[str], question: str) -> str:
    """The prompt for a question over passages."""
    return fill_prompt(ANSWER_PROMPT, question, passages)


def format_completion(answer: str, number: int) -> str:
    """The expected completion: a quote from passage `number` and its citation, or a refusal."""
    return f" {answer} [{number}]" if answer else f" {REFUSAL}"
