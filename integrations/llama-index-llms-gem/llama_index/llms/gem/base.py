"""`GemLLM`: a gem-rag model as an LLM of LlamaIndex.

Knows nothing about how text is generated, held to a schema or put into a chat template, which is
gem-rag's, nor about the form of messages (see `messages.py`) or about embeddings.
"""

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
from llama_index.llms.gem.messages import choice, from_reply, function, raw, selection, to_openai

import gem_rag
from gem_rag.aio import iterate_in_thread, run_in_thread
from gem_rag.generation.sampling import Sampling, TextStream
from gem_rag.model import EngineName, Gem

_SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed")


class GemLLM(FunctionCallingLLM):
    """Any causal language model, as gem-rag loads it: it chats, completes, calls tools, and
    fills in pydantic classes.

    model: a name that `gem_rag.load` knows, or a `Gem`, whose owner closes it. The same name is the
        same weights, wherever it is used in a process; they are loaded at first use.

    Calls take `Sampling`'s settings as keywords, `schema` among them.
    Concurrent calls, from threads or from asyncio, are generated together.

    `chat` goes by the model's chat template; `complete` continues the prompt as it is.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(
        default="gem-tiny", description="A bundled model, a local folder or a hub name."
    )
    engine: EngineName = Field(default="auto", description="What runs it.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of gem_rag.load."
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens to generate; by default 256, or what fits."
    )
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest token.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample among so much probability.")
    top_k: int = Field(default=0, ge=0, description="Sample among so many tokens; 0 for all.")
    stop: list[str] = Field(default_factory=list, description="Texts that end a generation.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")

    _gem: Gem | None = PrivateAttr(default=None)

    def __init__(self, model: str | Path | Gem = "gem-tiny", **settings: Any) -> None:
        model = settings.pop("model_name", model)  # what it is called in `to_dict`
        name = model.name if isinstance(model, Gem) else os.fspath(model)
        super().__init__(model_name=name, **settings)
        self._gem = model if isinstance(model, Gem) else None

    @property
    def gem(self) -> Gem:
        """The shared instance; asked for the first time, it loads the weights."""
        if self._gem is None:
            self._gem = gem_rag.load(self.model_name, self.engine, **self.model_kwargs)
        return self._gem

    @classmethod
    def class_name(cls) -> str:
        """What serialised settings are known by."""
        return "GemLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What the model's own configuration says."""
        context = self.gem.context
        return LLMMetadata(
            context_window=context,
            # LlamaIndex fills the rest of the context with passages, so leave it most of it.
            num_output=self.max_tokens or min(Sampling.max_tokens, context // 4),
            is_chat_model=self.gem.has_chat_template,
            is_function_calling_model=True,
            model_name=self.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        """What callbacks are told; no `model_kwargs`, which may hold credentials."""
        return {"class_name": self.class_name(), "model_name": self.model_name, **self._settings()}

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex would try to pickle the weights, to see whether it can.
        light = self.model_copy()
        light._gem = None
        return super(GemLLM, light).__getstate__()

    # -- completing ----------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a prompt, put into `completion_to_prompt`'s form unless it is formatted."""
        return self._complete(prompt, formatted, kwargs)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """As `complete`, piece by piece; the last response has no new text, but the usage."""
        return self._stream_complete(prompt, formatted, kwargs)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """As `complete`, in a thread."""
        return await run_in_thread(self._complete, prompt, formatted, kwargs)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As `stream_complete`, in a thread."""
        stream = self._stream_complete(prompt, formatted, kwargs)
        return iterate_in_thread(stream)

    def _complete(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> CompletionResponse:
        (generation,) = self.gem.generate(
            [self._formed(prompt, formatted)], **self._settings(**kwargs)
        )
        return CompletionResponse(text=generation.text, raw=raw(generation))

    def _stream_complete(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> CompletionResponseGen:
        formed = self._formed(prompt, formatted)
        pieces = TextStream(self.gem.stream(formed, **self._settings(**kwargs)))
        text = ""
        for delta in pieces:
            text += delta
            yield CompletionResponse(text=text, delta=delta)
        yield CompletionResponse(text=text, delta="", raw=raw(pieces.generation))

    def _formed(self, prompt: str, formatted: bool) -> str:
        assert self.completion_to_prompt is not None  # LLM puts its default there
        return prompt if formatted else self.completion_to_prompt(prompt)

    # -- chatting ------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation, or call one of `tools`, given in OpenAI's form."""
        return self._chat(messages, kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """As `chat`, piece by piece; the last response has no new text, but calls and the usage."""
        return self._stream_chat(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, in a thread."""
        return await run_in_thread(self._chat, messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`, in a thread."""
        return iterate_in_thread(self._stream_chat(messages, kwargs))

    def _chat(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> ChatResponse:
        reply = self.gem.chat([to_openai(m) for m in messages], **self._settings(**kwargs))
        return ChatResponse(message=from_reply(reply), raw=raw(reply))

    def _stream_chat(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> ChatResponseGen:
        shown = [to_openai(message) for message in messages]
        pieces = TextStream(self.gem.stream_chat(shown, **self._settings(**kwargs)))
        text = ""
        for delta in pieces:
            text += delta
            message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
            yield ChatResponse(message=message, delta=delta)
        reply = pieces.generation
        yield ChatResponse(message=from_reply(reply), delta="", raw=raw(reply))

    def _settings(self, **call: Any) -> dict[str, Any]:
        """This LLM's settings, but for those that a call brings along."""
        own = {name: getattr(self, name) for name in _SETTINGS}
        return {**own, **{name: value for name, value in call.items() if value is not None}}

    # -- tools and structured output -----------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,  # there is one call in a reply, whatever is asked
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        return {
            "messages": [*(chat_history or []), *([user_msg] if user_msg else [])],
            "tools": [function(tool) for tool in tools],
            "tool_choice": choice(tool_choice, tool_required) if tools else "none",
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls that a response holds.

        Raises ValueError if there is none, unless told not to.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError(
                f"the model called no tool, but answered {response.message.content!r}: pass "
                "tool_required=True, or more max_tokens if the answer is a call cut short"
            )
        return [selection(call) for call in calls]

    # LlamaIndex would stream a call of a tool, which comes whole at the end: a text held to the
    # class's schema shows how the object fills.

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        held = {**(llm_kwargs or {}), "schema": output_cls.model_json_schema()}
        return self._program(output_cls, prompt).stream_call(llm_kwargs=held, **prompt_args)

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        held = {**(llm_kwargs or {}), "schema": output_cls.model_json_schema()}
        return await self._program(output_cls, prompt).astream_call(llm_kwargs=held, **prompt_args)

    def _program(
        self, output_cls: type[BaseModel], prompt: PromptTemplate
    ) -> LLMTextCompletionProgram[BaseModel]:
        # A copy, because the program leaves its parser in the prompt.
        return LLMTextCompletionProgram.from_defaults(
            output_cls=output_cls, prompt=prompt.model_copy(), llm=self
        )
