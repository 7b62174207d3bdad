"""Nothing that a document says reaches a terminal as a command."""

from __future__ import annotations

import json

from gem_rag._utils.terminal import escape_controls, escape_controls_in_json, shorten

ATTACK = "a\x1b[2J\x1b]52;c;cm0=\x07b\x9b31m\x7f\u202ec\r"


def test_controls_are_written_as_escapes() -> None:
    shown = escape_controls(ATTACK + "tab\tline\n")
    assert shown.endswith("tab\tline\n")
    assert shown.isprintable() or all(c.isprintable() or c in "\t\n" for c in shown)
    assert "\\x1b" in shown


def test_json_stays_the_same_json() -> None:
    text = escape_controls_in_json(json.dumps({"k": ATTACK}, ensure_ascii=False))
    assert json.loads(text) == {"k": ATTACK}
    assert text.isprintable()


def test_a_text_is_shortened_between_words_or_between_characters() -> None:
    assert shorten("one two three", 99) == "one two three"
    assert shorten("one two three four", 15) == "one two three ..."
    assert shorten("保修期为自购买之日起二十四个月", 6) == "保修期为自购 ..."
