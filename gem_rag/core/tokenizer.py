"""Text to token ids, so that text never becomes a special token.

A document may contain `</s>`, `<|im_start|>` or the name of a GEM token; it is tokenized as the
characters it is made of. GEM's special tokens are not in the vocabulary at all (their input
embeddings are in the checkpoint's adapter file), so no text and no generated token can be one.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from gem_rag._utils.deadline import run_within
from gem_rag.errors import InputError

# Splits a control token in two so that it is no longer one; a noncharacter that no text contains.
_BREAK = "\ufdd0"
_TEMPLATE_SECONDS = 10.0  # templates are programs of the models' authors, and may loop


class SafeTokenizer:
    """A Hugging Face fast tokenizer that never reads a special token in a text.

    Safe to use from many threads: nothing changes after construction.

    Args:
        hf_tokenizer: The Hugging Face tokenizer.

    Attributes:
        hf_tokenizer: As given.
        chat_template: Its chat template, or those it has under several names as JSON; "" without.
        plain_backend: Its backend, for which everything is plain text.
        max_token_length: Most characters that a token of the vocabulary stands for.
        control_tokens: Ids by name of the tokens that are special where a chat template writes
            them, and plain text elsewhere.

    Raises:
        InputError: The tokenizer has no fast form.
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        if not getattr(hf_tokenizer, "is_fast", False):
            raise InputError(
                f"the tokenizer {type(hf_tokenizer).__name__} has no tokenizer.json form: convert "
                "it to a fast tokenizer (tokenizer.json) and save it in the model folder"
            )
        self.hf_tokenizer = hf_tokenizer
        template = hf_tokenizer.chat_template or ""
        self.chat_template = template if isinstance(template, str) else json.dumps(template)
        self.control_tokens = _control_tokens(hf_tokenizer, self.chat_template)
        self.plain_backend = _plain_backend(hf_tokenizer, self.control_tokens)
        self.max_token_length = max(map(len, hf_tokenizer.get_vocab()), default=1)
        names = map(re.escape, self.control_tokens)
        self._control_pattern = re.compile("|".join(names) or r"(?!)")

    @classmethod
    def from_folder(cls, folder: str | Path) -> SafeTokenizer:
        """The tokenizer of a checkpoint folder; code that it names is never run.

        Raises:
            InputError: It cannot be read.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever a broken file makes transformers run into
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"the tokenizer in {folder} cannot be loaded ({type(error).__name__}: {reason}): "
                "copy the folder whole, or choose a model whose tokenizer transformers has"
            ) from error
        return cls(tokenizer)

    def encode(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[tokenizers.Encoding]:
        """Tokenize plain texts.

        Args:
            texts: The texts.
            add_special_tokens: Whether what the tokenizer puts around a text (BOS, say) is added.

        Returns:
            For each text its token `ids` and the character `offsets` they stand for; what the
            tokenizer adds stands for no characters.

        Raises:
            InputError: A text holds a lone surrogate.
        """
        with _surrogates_named():
            return self.plain_backend.encode_batch(
                list(texts), add_special_tokens=add_special_tokens
            )

    def encode_prompted(
        self, prompt: str, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[tokenizers.Encoding]:
        """Tokenize plain texts, each after a prompt that the model's author wrote.

        Control tokens in the prompt become special tokens, as those that a chat template writes. A
        prompt that has any is the beginning of a rendered template: nothing is added around it, and
        it is tokenized as `encode_chat` tokenizes that, so that both begin with the same tokens.

        Args:
            prompt: The prompt.
            texts: The texts.
            add_special_tokens: As for `encode`, after a prompt without control tokens.

        Returns:
            As `encode`, of the prompt and each text together.

        Raises:
            InputError: A text holds a lone surrogate.
        """
        if not self.has_control_tokens(prompt):
            return self.encode([prompt + text for text in texts], add_special_tokens)

        def unless_in_prompt(match: re.Match[str]) -> str:
            return match[0] if match.end() <= len(prompt) else _broken(match)

        pieces = [
            self._control_pattern.sub(unless_in_prompt, prompt + text.replace(_BREAK, ""))
            .split(_BREAK)
            for text in texts
        ]  # fmt: skip
        with _surrogates_named():
            encoded = iter(
                self._template_backend.encode_batch(
                    list(itertools.chain.from_iterable(pieces)), add_special_tokens=False
                )
            )
        return [
            tokenizers.Encoding.merge(list(itertools.islice(encoded, len(own))), True)
            for own in pieces
        ]

    def has_control_tokens(self, text: str) -> bool:
        """Whether a text has the name of a control token in it."""
        return self._control_pattern.search(text) is not None

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a plain text that follows another: nothing is added around it."""
        with _surrogates_named():
            return self.plain_backend.encode(text, add_special_tokens=False).ids

    def count_tokens(self, text: str) -> int:
        """How many tokens `encode` makes of a text."""
        return len(self.encode([text])[0])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens, its spaces unchanged."""
        text = self.hf_tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """`decode` of several texts, which the tokenizer's own threads share."""
        return list(self.plain_backend.decode_batch(list(ids), skip_special_tokens=True))

    def stop_token_ids(self, stop: Sequence[str]) -> list[int]:
        """Ids of the stop strings that are control tokens, which no decoded text shows."""
        return [self.control_tokens[name] for name in stop if name in self.control_tokens]

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> list[int]:
        """Token ids of a conversation by the model's own chat template, ready to be continued.

        Control tokens that the template writes become special tokens; the same names inside a
        message are plain text.

        Raises:
            InputError: The model has no chat template, or the template rejects the messages or
                does not end.
        """
        rendered = self._render(messages, add_generation_prompt, template_kwargs)
        # Only the inside of a broken control token is a boundary, so ordinary text is tokenized in
        # one piece.
        encode = self.hf_tokenizer.encode
        with _surrogates_named():
            return [
                token_id
                for piece in rendered.split(_BREAK)
                for token_id in encode(piece, add_special_tokens=False)
            ]

    def render_chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """What the chat template makes of a conversation; raises what `encode_chat` raises."""
        return self._render(messages, True, {}).replace(_BREAK, "")

    def _render(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool,
        template_kwargs: dict[str, Any],
    ) -> str:
        """As `render_chat`, with a break inside every control token of the messages."""
        if not self.chat_template:
            raise InputError(
                "this model has no chat template: use generate() with a plain prompt, or add "
                "chat_template.jinja to the model folder"
            )
        messages = [self._break_control_tokens(message) for message in messages]
        try:
            rendered: str = run_within(
                _TEMPLATE_SECONDS,
                lambda: self.hf_tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **template_kwargs,
                ),
            )
        except Exception as error:  # a template is a program of the model's author
            raise InputError(f"the model's chat template refuses these messages: {error}") from None
        return rendered

    def _break_control_tokens(self, value: Any) -> Any:
        """A message, or a part of one, with a break inside every control token in its texts."""
        if isinstance(value, str):
            text = value.replace(_BREAK, "")
            return self._control_pattern.sub(_broken, text)
        if isinstance(value, dict):
            return {key: self._break_control_tokens(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._break_control_tokens(part) for part in value]
        return value

    @cached_property
    def _template_backend(self) -> tokenizers.Tokenizer:
        """A copy of the backend that reads control tokens, as in a rendered template."""
        copy = tokenizers.Tokenizer.from_str(self.hf_tokenizer.backend_tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
        return copy


def _broken(match: re.Match[str]) -> str:
    """A control token with a break inside."""
    return match[0][:1] + _BREAK + match[0][1:]


@contextmanager
def _surrogates_named() -> Iterator[None]:
    """Say what is wrong with a text that the tokenizer cannot take."""
    try:
        yield
    except TypeError:
        raise InputError(
            "a text holds a lone surrogate (\\ud800 to \\udfff), which no Unicode text does: "
            "decode its bytes with errors='replace'"
        ) from None


def _control_tokens(tokenizer: Any, template: str) -> dict[str, int]:
    """Names, longest first, that text must not be able to spell: special tokens, and the added
    tokens that the chat template writes."""
    names = {
        token.content: token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
        and (token.special or (len(token.content) > 1 and token.content in template))
    }
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))


def _plain_backend(tokenizer: Any, control_tokens: Collection[str]) -> tokenizers.Tokenizer:
    """A copy of the backend that reads every control token as plain text.

    Other added tokens (runs of spaces in GPT-NeoX, newlines in Gemma) are part of how the model
    reads text and stay.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in control_tokens
    plain = tokenizers.Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    plain.no_padding()
    plain.no_truncation()
    return plain
