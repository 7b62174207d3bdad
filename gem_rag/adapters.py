"""What adapters for frameworks share: options that others' models take, log-probabilities in
OpenAI's form, blank texts, reranking."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gem_rag.core.arrays import FloatArray
from gem_rag.errors import InputError
from gem_rag.generation.sampling import Generation, TokenLogprob
from gem_rag.model import Gem

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


def embed_with_blanks(
    gem: Gem, role: Literal["query", "document"], texts: Sequence[str], **settings: Any
) -> FloatArray:
    """Embed texts, of which one without a letter does not fail the others.

    Args:
        gem: The model.
        role: Of all texts.
        texts: A blank one has the vector of a space.
        **settings: Of `Gem.embed_queries` or `Gem.embed_documents`.

    Returns:
        Unit vectors in the order of the texts: float32 [n, dim].

    Raises:
        InputError: As those.
    """
    embed = gem.embed_queries if role == "query" else gem.embed_documents
    blank = [
        place for place, text in enumerate(texts) if isinstance(text, str) and not text.strip()
    ]
    if not blank:
        return embed(texts, **settings)
    vectors = np.empty((len(texts), gem.dim), dtype=np.float32)
    vectors[blank] = gem.embed_tokens([gem.tokenize(gem.config.prompts[role] + " ")])
    others = [place for place in range(len(texts)) if place not in set(blank)]
    if others:
        vectors[others] = embed([texts[place] for place in others], **settings)
    return vectors


def best_first(gem: Gem, question: str, passages: Sequence[str]) -> list[int]:
    """The places of passages, which are given best first, in a better order: see
    `gem_rag.rag.reranking.rerank`."""
    from gem_rag.rag.reranking import best_first

    return best_first(gem, question, passages) if passages else []
