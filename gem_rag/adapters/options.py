"""Options as applications written for other models pass them, and log-probabilities as those have
them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from gem_rag.errors import InputError
from gem_rag.generation.sampling import Generation, TokenLogprob

# Options that change no answer here: there is no network, and a plain text calls no tools.
_HARMLESS = (
    "max_retries", "parallel_tool_calls", "request_timeout", "service_tier", "store", "stream",
    "stream_options", "stream_usage", "strict", "timeout", "user",
)  # fmt: skip
# Options whose usual values ask for what there is anyway; others would change the answer.
_USUAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logit_bias": ({},),
}  # fmt: skip
_SECRET = re.compile(r"(^|_)(token|key|password|secret)$")


def without_harmless(
    options: Mapping[str, Any],
    harmless: Collection[str] = _HARMLESS,
    usual: Mapping[str, tuple[Any, ...]] = _USUAL,
    known: Collection[str] = (),
) -> dict[str, Any]:
    """Options without those that are None, and those that change nothing here.

    Args:
        options: What was passed.
        harmless: Names that change nothing; by default no answer of a language model.
        usual: Values, by name, that ask for what there is anyway.
        known: Names that are kept nevertheless, whatever they ask for.

    Raises:
        InputError: An option asks for what gem-rag does not do; the message names it.
    """
    kept = {}
    for name, value in options.items():
        if value is None or (name in harmless and name not in known):
            continue
        if name in known or name not in usual:
            kept[name] = value
        elif value not in usual[name]:
            raise InputError(
                f"{name}={value!r} is not supported: leave it out, or give {usual[name][0]!r}"
            )
    return kept


def sampling_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which `logprobs` is that of `Sampling`: OpenAI's chat models take True, and
    `top_logprobs` beside it."""
    kept = dict(options)
    asked, top = kept.pop("logprobs", None), kept.pop("top_logprobs", None)
    if isinstance(asked, bool) or asked is None:
        asked = (top or 0) if asked or top else None
    return kept if asked is None else {**kept, "logprobs": asked}


def openai_logprobs(generation: Generation) -> dict[str, Any]:
    """A text's log-probabilities in OpenAI's form, with the tokens' ids."""
    content = [
        {**_openai_token(one), "top_logprobs": [_openai_token(other) for other in one.top]}
        for one in generation.logprobs
    ]
    return {"content": content}


def _openai_token(one: TokenLogprob) -> dict[str, Any]:
    part_of_character = "\ufffd" in one.text
    return {
        "token": one.text,
        "token_id": one.token,
        "logprob": one.logprob,
        "bytes": None if part_of_character else list(one.text.encode()),
    }


def without_secrets(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those that traces and logs must not hold, such as the hub's token."""
    return {name: value for name, value in options.items() if not _SECRET.search(name)}
