"""What chat models and language models have in common: how a text is sampled, and its figures.

Knows nothing about messages or tools.
"""

from __future__ import annotations

from typing import Any, Self

from langchain_core.language_models import BaseLanguageModel, LangSmithParams
from langchain_core.messages.ai import UsageMetadata
from pydantic import model_validator

from gem_rag import Gem, Generation
from langchain_gem._shared import GemModel
from langchain_gem._version import __version__

_SAMPLING = ("temperature", "max_tokens", "top_p", "top_k", "seed")


class GemLanguageModel(GemModel, BaseLanguageModel[Any]):
    """The fields that say how to write; a call may give others.

    temperature, max_tokens, top_p, top_k, seed: as in `Gem.generate`; its defaults without them.
    stop: texts that end what is written, besides those of a call.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = None

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    def get_token_ids(self, text: str) -> list[int]:
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.gem.encode(text)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        named = {"model_name": self.model_name, "engine": self.engine, "stop": self.stop}
        return {**named, "model_kwargs": self.model_kwargs, **self._sampling()}

    def _sampling(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in _SAMPLING}
        return {name: value for name, value in settings.items() if value is not None}

    def _stops(self, stop: list[str] | None) -> list[str]:
        return [*(self.stop or ()), *(stop or ())]

    def _call(self, stop: list[str] | None, kwargs: dict[str, Any]) -> tuple[Gem, dict[str, Any]]:
        """The model that a call means, and its settings: the call's own before the adapter's."""
        settings = {**self._sampling(), **kwargs, "stop": self._stops(stop)}
        settings.pop("stream", None)  # LangChain's own, which has had its effect
        return self._loaded(settings.pop("model", None)), settings

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self._stops(stop) or None, **kwargs)
        params["ls_provider"] = "gem"
        return params

    @model_validator(mode="after")
    def _set_gem_version(self) -> Self:
        self._add_version("langchain-gem", __version__)
        return self


def origin(gem: Gem, generation: Generation) -> dict[str, str]:
    """Who wrote a text, and why it ends."""
    return {"model_name": gem.name, "finish_reason": generation.finish_reason}


def usage(generation: Generation) -> UsageMetadata:
    """Tokens read and written."""
    read, written = generation.prompt_tokens, len(generation.tokens)
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
