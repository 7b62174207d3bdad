"""Fields of requests that say how to generate."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from gem_rag.adapters import sampling_options as with_logprobs
from gem_rag.generation.sampling import MOST_LOGPROBS, SamplingOptions
from gem_rag.server.bodies import Body, Part
from gem_rag.server.catalog import Catalog
from gem_rag.server.errors import ApiError

# Scores are divided by it: beyond these, float32 has no numbers for the result.
_COLDEST, _HOTTEST = 1e-3, 1e3


class SamplingFields(Part):
    """Settings of `Sampling`, by its own names: one that it gains is one line here."""

    temperature: float | None = Field(None, ge=0, le=_HOTTEST)
    top_p: float | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=_COLDEST, le=_HOTTEST)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)


# What else OpenAI's requests may say of an answer, and the values that are obeyed here.
_OBEYED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
}


HINTS = {"logprobs": f"Input should be a boolean, or from 0 to {MOST_LOGPROBS}"}


class GenerationFields(SamplingFields, Body):
    """What OpenAI's chats and completions have in common.

    `user`, `metadata`, `safety_identifier` and `prompt_cache_key` say nothing of the answer and are
    not read; the fields of `_OBEYED` may have the values there.
    """

    model: str
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    n: int | None = Field(None, ge=1)
    logprobs: bool | Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    best_of: Any = None
    logit_bias: Any = None
    echo: Any = None
    suffix: Any = None
    modalities: Any = None
    store: Any = None
    service_tier: Any = None

    @property
    def count(self) -> int:
        """How many answers were asked for."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return (self.stream_options or {}).get("include_usage") is True

    def check(self) -> None:
        """Raise ApiError for a field that cannot be obeyed."""
        for name, obeyed in _OBEYED.items():
            value = getattr(self, name)
            if value is not None and value not in obeyed:
                raise ApiError(
                    f"{name} is {str(value)[:40]!r}, and this server knows only {obeyed[0]!r}: "
                    "leave it out",
                    param=name,
                )
        if self.stream and self.count > 1:
            raise ApiError(f"n is {self.n}, and one answer can be streamed: give 1", param="n")
        if self.stream_options is not None and not self.stream:
            raise ApiError("stream_options goes with stream: true", param="stream_options")
        for name in self.stream_options or ():
            if name not in ("include_usage", "include_obfuscation"):
                raise ApiError(
                    f"stream_options has an unknown field {name!r}: use include_usage",
                    param="stream_options",
                )


def generation_options(request: GenerationFields) -> SamplingOptions:
    """As `sampling_options`, with log-probabilities."""
    asked = {"logprobs": request.logprobs, "top_logprobs": request.top_logprobs}
    options: Any = with_logprobs({**sampling_options(request), **asked})
    return options


def sampling_options(request: SamplingFields) -> SamplingOptions:
    """The settings that a request gives. Raises ApiError for a temperature that is next to 0."""
    if 0 < (request.temperature or 0) < _COLDEST:
        raise ApiError(
            f"temperature is {request.temperature}: give 0, or {_COLDEST} and more",
            param="temperature",
        )
    given: Any = {name: getattr(request, name) for name in SamplingFields.model_fields}
    options: Any = {name: value for name, value in given.items() if value is not None}
    if options.get("top_k") == -1:  # vLLM's word for all
        del options["top_k"]
    return options


def limit_tokens(catalog: Catalog, wanted: int | None, default: int | None) -> int | None:
    """The most tokens to generate for a request. Raises ApiError if it asks for too many."""
    most = catalog.settings.max_tokens
    if wanted is not None and most is not None and wanted > most:
        raise ApiError(
            f"max_tokens is {wanted} and at most {most} are allowed: ask for fewer",
            param="max_tokens",
        )
    tokens = default if wanted is None else wanted
    return tokens if most is None or tokens is None else min(tokens, most)
