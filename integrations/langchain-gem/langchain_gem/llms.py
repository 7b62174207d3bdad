"""`GemLLM`: text completion without a chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from gem_rag import TextStream
from gem_rag.aio import iterate_in_thread, run_in_thread
from langchain_gem._language_model import GemLanguageModel, response_metadata, usage_metadata
from langchain_gem._shared import GemModel


class GemLLM(GemLanguageModel, BaseLLM):
    """Continues prompts as they are, without a chat template; a list of prompts is one batch."""

    model_config = GemModel.model_config  # BaseLLM's would ignore unknown fields

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
        gem, settings = self._prepare_call(stop, kwargs)
        completions = gem.generate(prompts, **settings)
        usages = [usage_metadata(completion) for completion in completions]
        return LLMResult(
            generations=[
                [
                    Generation(
                        text=completion.text,
                        generation_info={**response_metadata(gem, completion), "usage": usage},
                    )
                ]
                for completion, usage in zip(completions, usages, strict=True)
            ],
            llm_output={
                "model_name": gem.name,
                "token_usage": {
                    "prompt_tokens": sum(usage["input_tokens"] for usage in usages),
                    "completion_tokens": sum(usage["output_tokens"] for usage in usages),
                    "total_tokens": sum(usage["total_tokens"] for usage in usages),
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
        for chunk in self._stream_chunks(prompt, stop, kwargs):
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
        async for chunk in iterate_in_thread(self._stream_chunks(prompt, stop, kwargs)):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _stream_chunks(
        self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]
    ) -> Generator[GenerationChunk, None, None]:
        gem, settings = self._prepare_call(stop, kwargs)
        stream = TextStream(gem.stream(prompt, **settings))
        for delta in stream:
            yield GenerationChunk(text=delta)
        completion = stream.generation
        info = {**response_metadata(gem, completion), "usage": usage_metadata(completion)}
        yield GenerationChunk(text="", generation_info=info)
