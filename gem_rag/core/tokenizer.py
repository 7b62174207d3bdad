"""Text to token ids, so that text never becomes a special token.

A document may contain `</s>`, `<|im_start|>` or a GEM token's own name; it is tokenised as the
characters it is made of. GEM's special tokens are not in the vocabulary at all (their input rows
live in the checkpoint's adapter file), so no text and no generated token can ever be one.

Knows nothing about models, layouts or prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import tokenizers

from gem_rag.errors import InputError

# Splits a marker in two so that it is no longer one; a noncharacter that no real text contains.
_BREAK = "\ufdd0"


class SafeTokenizer:
    """Safe encoding and decoding around a Hugging Face fast tokenizer.

    Safe to use from many threads: nothing is changed after construction.

    tokenizer: the Hugging Face tokenizer.
    template: its chat template, or those it has under several names; empty without one.
    plain: its backend, for which everything is text.
    markers: names, with their ids, that are special tokens where a template writes them, and
        text elsewhere.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json form: convert it "
                "to a fast tokenizer (tokenizer.json) and save it in the model folder"
            )
        self.tokenizer = tokenizer
        template = tokenizer.chat_template or ""
        self.template = template if isinstance(template, str) else json.dumps(template)
        self.markers = _markers(tokenizer, self.template)
        self.plain = _plain_backend(tokenizer, self.markers)
        self._marker_pattern = re.compile("|".join(map(re.escape, self.markers)) or r"(?!)")

    def encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Plain texts as token `ids` and the character `offsets` they stand for, with what the
        tokenizer puts around a text (BOS, say), which stands for no characters.
        """
        try:
            return self.plain.encode_batch(list(texts), add_special_tokens=True)
        except TypeError:
            raise InputError(
                "a text holds a lone surrogate (\\ud800 to \\udfff), which no Unicode text does: "
                "decode its bytes with errors='replace'"
            ) from None

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a plain text that stands behind another: nothing is put around it."""
        return self.plain.encode(text, add_special_tokens=False).ids

    def count(self, text: str) -> int:
        """How many tokens `encode` makes of the text."""
        return len(self.encode([text])[0])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens and with spaces as they are."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def encode_chat(self, messages: Sequence[dict[str, Any]], **template_kwargs: Any) -> list[int]:
        """Token ids of a conversation by the model's own chat template, ready to be continued.

        Markers that the template writes become special tokens; the same markers inside a
        message are plain text.

        Raises InputError if the model has no chat template or the template refuses the messages.
        """
        if not self.template:
            raise InputError(
                "this model has no chat template: use generate() with a plain prompt, or add "
                "chat_template.jinja to the model folder"
            )
        messages = [self._defused(message) for message in messages]
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **template_kwargs
            )
        except Exception as error:  # a template is a program of the model's author
            raise InputError(f"the model's chat template refuses these messages: {error}") from None
        # Only a broken marker's inside is a boundary, so ordinary text is tokenised in one piece.
        pieces = rendered.split(_BREAK)
        return [
            i for piece in pieces for i in self.tokenizer.encode(piece, add_special_tokens=False)
        ]

    def _defused(self, value: Any) -> Any:
        """A message, or a part of one, with a break inside every marker in its texts."""
        if isinstance(value, str):
            text = value.replace(_BREAK, "")
            return self._marker_pattern.sub(lambda m: m[0][:1] + _BREAK + m[0][1:], text)
        if isinstance(value, dict):
            return {key: self._defused(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._defused(part) for part in value]
        return value


def _markers(tokenizer: Any, template: str) -> dict[str, int]:
    """Names that text must not be able to spell, longest first, and their ids: control tokens and
    the chat template's own."""
    found = {
        token.content: id
        for id, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
        and (token.special or (len(token.content) > 1 and token.content in template))
    }
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _plain_backend(tokenizer: Any, markers: Collection[str]) -> tokenizers.Tokenizer:
    """A copy of the backend for which every marker is special, and special tokens are text.

    Other added tokens (runs of spaces in GPT-NeoX, newlines in Gemma) are part of how the model
    reads text and stay.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in markers
    plain = tokenizers.Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    plain.no_padding()
    plain.no_truncation()
    return plain
