"""`GemLLM`: a model that continues texts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from gem_rag.aio import iterate_in_thread, run_in_thread
from gem_rag.generation.sampling import TextStream
from langchain_gem._language import GemLanguageModel, origin, usage
from langchain_gem._shared import GemModel


class GemLLM(GemLanguageModel, BaseLLM):
    """Continues texts as they are, without a chat template; a list of them in batches."""

    model_config = GemModel.model_config  # else BaseLLM's, which passes over wrong fields

    @property
    def _llm_type(self) -> str:
        return "gem"

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        gem, settings = self._call(stop, kwargs)
        written = gem.generate(prompts, **settings)
        counts = [usage(generation) for generation in written]
        return LLMResult(
            generations=[
                [Generation(text=g.text, generation_info={**origin(gem, g), "usage": count})]
                for g, count in zip(written, counts, strict=True)
            ],
            llm_output={
                "model_name": gem.name,
                "token_usage": {
                    "prompt_tokens": sum(count["input_tokens"] for count in counts),
                    "completion_tokens": sum(count["output_tokens"] for count in counts),
                    "total_tokens": sum(count["total_tokens"] for count in counts),
                },
            },
        )

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return await run_in_thread(self._generate, prompts, stop, **kwargs)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for chunk in self._chunks(prompt, stop, kwargs):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        async for chunk in iterate_in_thread(self._chunks(prompt, stop, kwargs)):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _chunks(
        self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]
    ) -> Generator[GenerationChunk, None, None]:
        gem, settings = self._call(stop, kwargs)
        pieces = TextStream(gem.stream(prompt, **settings))
        for piece in pieces:
            yield GenerationChunk(text=piece)
        written = pieces.generation
        info = {**origin(gem, written), "usage": usage(written)}
        yield GenerationChunk(text="", generation_info=info)
