"""`GemLLM`: a gem-rag model as a LlamaIndex LLM."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.llm_program import LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.llms.gem.messages import (
    from_reply,
    to_logprobs,
    to_openai_message,
    to_openai_tool,
    to_raw_response,
    to_tool_choice,
    to_tool_selection,
)

import gem_rag
from gem_rag import EngineName, Gem, Sampling, TextStream
from gem_rag.adapters import sampling_options, without_harmless
from gem_rag.aio import iterate_in_thread, run_in_thread

_SAMPLING_FIELDS = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "stop", "seed",
)  # fmt: skip


class GemLLM(FunctionCallingLLM):
    """LLM for completion, chat, tool calling and structured prediction.

    `chat` renders conversations by the model's chat template, or plainly if it has none;
    `complete` continues the prompt as it is. Calls accept the fields of `gem_rag.Sampling` as
    keywords, among them `schema`, a JSON schema for the output. Concurrent calls, from threads or
    asyncio, are batched together.

    The model is loaded on first use. LLMs of the same model within a process share one set of
    weights.

    Args:
        model: A name that `gem_rag.load` accepts (bundled, a local folder, or a hub name), or a
            `Gem`, which its owner closes.
        **settings: The fields below and those of `FunctionCallingLLM`.

    Attributes:
        model_name: The name of the model.
        engine: What runs a named model, as in `gem_rag.load`.
        model_kwargs: Further options of `gem_rag.load` for a named model.
        max_tokens: Maximum number of new tokens; default 256, or what the context leaves room for.
        temperature: Sampling temperature; 0 is greedy decoding.
        top_p: Nucleus sampling: the smallest set of tokens with this much probability.
        top_k: Sample from this many tokens; 0 for all.
        min_p: Sample from tokens with at least this share of the likeliest one's probability.
        repetition_penalty: Above 1, tokens of the prompt and the text become less likely.
        presence_penalty: Taken from the score of every token that the text has; from -2 to 2.
        frequency_penalty: Likewise, once for each time that the text has the token.
        logprobs: Whether responses have `logprobs`.
        top_logprobs: For each token those of this many of the likeliest in its place.
        stop: Stop strings.
        seed: Makes sampling reproducible.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(
        default="gem-tiny", description="A bundled model, a local folder or a hub name."
    )
    engine: EngineName = Field(default="auto", description="The inference engine.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of gem_rag.load."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of new tokens; by default 256, or what fits.",
    )
    temperature: float = Field(default=0.0, ge=0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus sampling threshold.")
    top_k: int = Field(default=0, ge=0, description="Sample from so many tokens; 0 for all.")
    min_p: float = Field(default=0.0, ge=0, le=1, description="Least share of the likeliest.")
    repetition_penalty: float = Field(default=1.0, gt=0, description="Above 1, against repetition.")
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, description="Of tokens once there.")
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, description="Of frequent tokens.")
    logprobs: bool | None = Field(default=None, description="Whether to give log-probabilities.")
    top_logprobs: int | None = Field(default=None, ge=0, description="Of so many tokens a place.")
    stop: list[str] = Field(default_factory=list, description="Stop strings.")
    seed: int | None = Field(default=None, description="Makes sampling reproducible.")

    _gem: Gem | None = PrivateAttr(default=None)

    def __init__(self, model: str | Path | Gem = "gem-tiny", **settings: Any) -> None:
        model = settings.pop("model_name", model)  # its name in `to_dict`
        name = model.name if isinstance(model, Gem) else os.fspath(model)
        super().__init__(model_name=name, **without_harmless(settings))
        self._gem = model if isinstance(model, Gem) else None

    @property
    def gem(self) -> Gem:
        """The shared model, loaded on first access."""
        if self._gem is None:
            self._gem = gem_rag.load(self.model_name, self.engine, **self.model_kwargs)
        return self._gem

    @classmethod
    def class_name(cls) -> str:
        """The identifier of the class in serialized settings."""
        return "GemLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """Context window, output length and capabilities, from the model's configuration."""
        context_length = self.gem.context_length
        return LLMMetadata(
            context_window=context_length,
            # LlamaIndex fills what remains of the context with passages: leave most of it to them.
            num_output=self.max_tokens or min(Sampling.max_tokens, context_length // 4),
            is_chat_model=self.gem.has_chat_template,
            is_function_calling_model=True,
            model_name=self.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        """The settings passed to callbacks, without `model_kwargs`, which may hold credentials."""
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            **self._sampling_settings(),
        }

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex pickles every private attribute to see which can be; keep weights out of it.
        without_weights = self.model_copy()
        without_weights._gem = None
        return super(GemLLM, without_weights).__getstate__()

    # -- completion ----------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a prompt.

        Args:
            prompt: The prompt.
            formatted: Whether the prompt is complete; otherwise `completion_to_prompt` formats it.
            **kwargs: Sampling settings that override the LLM's.

        Returns:
            The completion, with token usage in `raw`.
        """
        return self._complete(prompt, formatted, kwargs)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Like `complete`, streamed; the last response has no new text but carries the usage."""
        return self._stream_complete(prompt, formatted, kwargs)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Like `complete`, in a thread."""
        return await run_in_thread(self._complete, prompt, formatted, kwargs)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Like `stream_complete`, in a thread."""
        return iterate_in_thread(self._stream_complete(prompt, formatted, kwargs))

    def _complete(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> CompletionResponse:
        prompts = [prompt if formatted else self._format_prompt(prompt)]
        (generation,) = self.gem.generate(prompts, **self._sampling_settings(**kwargs))
        return CompletionResponse(
            text=generation.text, raw=to_raw_response(generation), logprobs=to_logprobs(generation)
        )

    def _stream_complete(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> CompletionResponseGen:
        if not formatted:
            prompt = self._format_prompt(prompt)
        stream = TextStream(self.gem.stream(prompt, **self._sampling_settings(**kwargs)))
        text = ""
        for delta in stream:
            text += delta
            yield CompletionResponse(text=text, delta=delta)
        end = stream.generation
        yield CompletionResponse(
            text=text, delta="", raw=to_raw_response(end), logprobs=to_logprobs(end)
        )

    def _format_prompt(self, prompt: str) -> str:
        assert self.completion_to_prompt is not None  # LLM's validator sets the default
        return self.completion_to_prompt(prompt)

    # -- chat ----------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Reply to a conversation.

        Args:
            messages: The conversation.
            **kwargs: Sampling settings that override the LLM's, and the `tools` (in OpenAI's
                format), `tool_choice` and `response_format` of `Gem.chat`.

        Returns:
            The reply, or tool calls, with token usage in `raw`.
        """
        return self._chat(messages, kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Like `chat`, streamed; the last response carries tool calls and usage but no new text."""
        return self._stream_chat(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Like `chat`, in a thread."""
        return await run_in_thread(self._chat, messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Like `stream_chat`, in a thread."""
        return iterate_in_thread(self._stream_chat(messages, kwargs))

    def _chat(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> ChatResponse:
        openai_messages = [to_openai_message(message) for message in messages]
        reply = self.gem.chat(openai_messages, **self._chat_settings(kwargs))
        return ChatResponse(
            message=from_reply(reply), raw=to_raw_response(reply), logprobs=to_logprobs(reply)
        )

    def _stream_chat(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> ChatResponseGen:
        openai_messages = [to_openai_message(message) for message in messages]
        settings = self._chat_settings(kwargs)
        stream = TextStream(self.gem.stream_chat(openai_messages, **settings))
        text = ""
        for delta in stream:
            text += delta
            message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
            yield ChatResponse(message=message, delta=delta)
        reply = stream.generation
        yield ChatResponse(
            message=from_reply(reply),
            delta="",
            raw=to_raw_response(reply),
            logprobs=to_logprobs(reply),
        )

    def _chat_settings(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Settings of a call, with those that only replies with tools have."""
        parallel = kwargs.get("parallel_tool_calls")
        settings = self._sampling_settings(**kwargs)
        return settings if parallel is None else {**settings, "parallel_tool_calls": parallel}

    def _sampling_settings(self, **overrides: Any) -> dict[str, Any]:
        """The LLM's sampling settings, overridden by those of a call that are not None."""
        settings = {name: getattr(self, name) for name in _SAMPLING_FIELDS}
        return sampling_options({**settings, **without_harmless(overrides)})

    # -- tools and structured output -----------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        return {
            "messages": [*(chat_history or []), *([user_msg] if user_msg else [])],
            "tools": [to_openai_tool(tool) for tool in tools],
            "tool_choice": to_tool_choice(tool_choice, tool_required) if tools else "none",
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Extract the tool calls of a response.

        Args:
            response: A response of `chat_with_tools`.
            error_on_no_tool_call: Whether a response without a call is an error.
            **kwargs: Ignored.

        Returns:
            The tool calls.

        Raises:
            ValueError: There is none, or one cannot be made: it was cut, say.
        """
        for call in response.message.additional_kwargs.get("invalid_tool_calls", ()):
            raise ValueError(
                f"the model's call of {call['name']!r} cannot be made: {call['error']}; it wrote "
                f"{call['arguments'][:200]!r}"
            )
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError(
                f"the model called no tool, but answered {response.message.content!r}: pass "
                "tool_required=True"
            )
        return [to_tool_selection(call) for call in calls]

    # The base class would stream a tool call, which arrives all at once at the end. Text generated
    # under the class's schema yields partial objects instead.

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        llm_kwargs = {**(llm_kwargs or {}), "schema": output_cls.model_json_schema()}
        return self._completion_program(output_cls, prompt).stream_call(
            llm_kwargs=llm_kwargs, **prompt_args
        )

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        llm_kwargs = {**(llm_kwargs or {}), "schema": output_cls.model_json_schema()}
        return await self._completion_program(output_cls, prompt).astream_call(
            llm_kwargs=llm_kwargs, **prompt_args
        )

    def _completion_program(
        self, output_cls: type[BaseModel], prompt: PromptTemplate
    ) -> LLMTextCompletionProgram[BaseModel]:
        # A copy, since the program sets its output parser on the prompt.
        return LLMTextCompletionProgram.from_defaults(
            output_cls=output_cls, prompt=prompt.model_copy(), llm=self
        )
