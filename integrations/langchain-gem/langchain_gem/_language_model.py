"""The base of `ChatGem` and `GemLLM`: sampling settings, token counts and response metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from langchain_core.language_models import BaseLanguageModel, LangSmithParams
from langchain_core.messages.ai import UsageMetadata
from pydantic import model_validator

from gem_rag import Gem, Generation
from gem_rag.adapters import (
    openai_logprobs,
    sampling_options,
    without_harmless,
    without_secrets,
)
from langchain_gem._shared import GemModel
from langchain_gem._version import __version__

_SAMPLING_FIELDS = (
    "temperature", "max_tokens", "top_p", "top_k", "min_p", "seed", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs",
)  # fmt: skip


class GemLanguageModel(GemModel, BaseLanguageModel[Any]):
    """Base class with the default sampling settings, which each call may override.

    Attributes:
        temperature: Sampling temperature; 0 (the default of `Gem.generate`) is greedy decoding.
        max_tokens: Maximum number of new tokens.
        top_p: Nucleus sampling: the smallest set of tokens with this much probability.
        top_k: Sample from this many tokens; 0 for all.
        min_p: Sample from tokens with at least this share of the likeliest one's probability.
        seed: Makes sampling reproducible.
        repetition_penalty: Above 1, tokens of the prompt and the text become less likely.
        presence_penalty: Taken from the score of every token that the text has; from -2 to 2.
        frequency_penalty: Likewise, once for each time that the text has the token.
        logprobs: Whether `response_metadata` has the tokens' log-probabilities, in OpenAI's form.
        top_logprobs: Those of how many of the likeliest tokens at each place, beside them.
        stop: Stop strings, in addition to those of a call.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    stop: list[str] | None = None

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    def get_token_ids(self, text: str) -> list[int]:
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.gem.tokenize(text)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model_name": self.model_name,
            "engine": self.engine,
            "stop": self.stop,
            "model_kwargs": without_secrets(self.model_kwargs),
            **self._sampling_settings(),
        }

    def _sampling_settings(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in _SAMPLING_FIELDS}
        return {name: value for name, value in settings.items() if value is not None}

    def _merge_stop(self, stop: list[str] | None) -> list[str]:
        return [*(self.stop or ()), *(stop or ())]

    def _prepare_call(
        self, stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[Gem, dict[str, Any]]:
        """The model and the sampling settings of a call, whose own settings take precedence."""
        accepted = without_harmless(kwargs, known=type(self).model_fields)
        settings = sampling_options({**self._sampling_settings(), **accepted})
        settings["stop"] = self._merge_stop(stop)
        return self._resolve_model(settings.pop("model", None)), settings

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self._merge_stop(stop) or None, **kwargs)
        params["ls_provider"] = "gem"
        return params

    @model_validator(mode="before")
    @classmethod
    def _drop_harmless(cls, values: Any) -> Any:
        """Accept what other models take, as far as it changes no answer."""
        if not isinstance(values, Mapping):
            return values
        return without_harmless(values, known=cls.model_fields)

    @model_validator(mode="after")
    def _set_gem_version(self) -> Self:
        self._add_version("langchain-gem", __version__)
        return self


def response_metadata(gem: Gem, generation: Generation) -> dict[str, Any]:
    """The name of the model, why generation ended, what is wrong with an answer of a schema or with
    calls, and log-probabilities, if asked for."""
    metadata: dict[str, Any] = {
        "model_name": gem.name,
        "finish_reason": generation.finish_reason,
    }
    if errors := [call.error for call in getattr(generation, "invalid_tool_calls", ())]:
        metadata["tool_call_errors"] = errors
    if generation.logprobs:
        metadata["logprobs"] = openai_logprobs(generation)
    if generation.schema_error:
        metadata["schema_error"] = generation.schema_error
    return metadata


def usage_metadata(generation: Generation) -> UsageMetadata:
    """Token counts of the prompt and the completion."""
    prompt, completion = generation.prompt_tokens, len(generation.tokens)
    return UsageMetadata(
        input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion
    )
