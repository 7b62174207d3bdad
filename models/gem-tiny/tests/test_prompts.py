"""The prompts of training rows are those of `gem_rag.rag.answer`."""

from __future__ import annotations

from gem_tiny.prompts import ANSWER_PROMPT, format_completion, format_prompt

from gem_rag.rag.answer import REFUSAL, _build_prompt


def test_prompts_are_what_answers_are_asked_with() -> None:
    class Config:
        answer_prompt = ANSWER_PROMPT

    class Gem:
        config = Config

        def tokenize(self, text: str) -> str:
            return text

    passages = ["# a.b(x)\nUse {x}.", "Page > Part\nText."]
    asked = _build_prompt(Gem(), "What?", passages)  # type: ignore[arg-type]
    assert asked == format_prompt(passages, "What?")
    assert format_completion("Use {x}.", 1) == " Use {x}. [1]"
    assert format_completion("", 0) == f" {REFUSAL}"
