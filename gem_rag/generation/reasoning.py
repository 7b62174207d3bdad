"""What reasoning models write before they answer: `<think> ... </think>`, as most of them do."""

from __future__ import annotations

from dataclasses import dataclass

_OPENING, _CLOSING = "<think>", "</think>"


@dataclass(frozen=True)
class Reasoning:
    """The part of a text in which its model reasons.

    Attributes:
        begun: Whether the prompt has opened it already.
    """

    begun: bool

    @classmethod
    def of(cls, template: str, prompt: str) -> Reasoning | None:
        """How a reply begins; None for a model that does not reason, or is told not to.

        Args:
            template: The model's chat template.
            prompt: The end of the prompt that it wrote.
        """
        prompt = prompt.rstrip()
        if _OPENING not in template or prompt.endswith(_CLOSING):
            return None
        return cls(begun=prompt.endswith(_OPENING))

    def split(self, text: str) -> tuple[str, str, bool]:
        """The reasoning in a text that may be unfinished, what follows it, and whether that has
        begun."""
        text = text.lstrip()
        if not self.begun and not text.startswith(_OPENING):
            return "", text, not _OPENING.startswith(text)
        reasoning, closing, rest = text.removeprefix(_OPENING).partition(_CLOSING)
        return reasoning.strip(), rest.lstrip(), bool(closing)

    def rules(self, reply: str) -> str:
        """Lark rules that begin a grammar: reasoning, before what another rule describes.

        Args:
            reply: The name of that rule.
        """
        start = f"start: _rest {reply}" if self.begun else f"start: thought? {reply}"
        return "\n".join(
            [
                start,
                f'thought: "{_OPENING}" _rest',
                r"_rest: _body /\s*/",
                rf'_body[suffix="{_CLOSING}"]: /(.|\n)*/',
            ]
        )
