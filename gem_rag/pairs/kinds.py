"""Kinds of question."""

from __future__ import annotations

from collections.abc import Mapping

# What is asked for, and an example for models that continue texts.
KINDS: Mapping[str, tuple[str, str]] = {
    "how-to": (
        "a question that begins with How and asks how to do something",
        "How do I keep a program running after I log out?",
    ),
    "why": (
        "a question that begins with Why and asks for a reason",
        "Why does a program stop when its terminal is closed?",
    ),
    "error": (
        "a question of somebody for whom something went wrong, who describes the problem",
        "My program dies when I close the terminal, what can I do?",
    ),
    "definition": (
        "a question that begins with What is and asks what a term means",
        "What is a hangup signal?",
    ),
    "keywords": (
        "a search query of three to six words, without a question mark",
        "keep program running after logout",
    ),
}
