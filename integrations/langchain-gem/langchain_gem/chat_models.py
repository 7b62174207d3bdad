"""`ChatGem`: chat, tool calling and structured output."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Sequence
from operator import itemgetter
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel, Field

from gem_rag import ChatReply, Gem, InputError, TextStream
from gem_rag.aio import iterate_in_thread, run_in_thread
from langchain_gem._language_model import GemLanguageModel, response_metadata, usage_metadata
from langchain_gem._messages import (
    reasoning_content,
    to_invalid_tool_call,
    to_invalid_tool_call_chunk,
    to_langchain_tool_call,
    to_openai_messages,
    to_tool_call_chunk,
    to_tool_choice,
)
from langchain_gem._output_parsers import output_parser
from langchain_gem._shared import GemModel


class ChatGem(GemLanguageModel, BaseChatModel):
    """Chat model with tool calling and structured output.

    Conversations are rendered by the model's chat template, or plainly if it has none.

    Attributes:
        streaming: Whether `invoke` streams internally, so that callbacks receive every token.
        n: How many replies `generate` gives to each conversation; they differ if `temperature` is
            above 0.
        parallel_tool_calls: Whether a reply may have several tool calls, of a model whose chat
            template shows tools; default True.
    """

    model_config = GemModel.model_config  # BaseChatModel's would ignore unknown fields

    streaming: bool = False
    n: int = Field(default=1, ge=1)
    parallel_tool_calls: bool | None = None

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools to the model; the arguments of a call always conform to the tool's schema.

        Args:
            tools: Tools in any form that LangChain accepts.
            tool_choice: "auto" or None lets the model decide, "any" ("required", True) forces a
                call of one of the tools, a tool's name (also in OpenAI's form) forces that tool,
                "none" forbids calls.
            strict: Passed to `convert_to_openai_tool`.
            **kwargs: Further arguments of each call.

        Returns:
            The model with the tools bound.
        """
        openai_tools = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        return self.bind(tools=openai_tools, tool_choice=to_tool_choice(tool_choice), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Return a model that answers with instances of a schema, by constrained decoding.

        Args:
            schema: A pydantic class, a TypedDict, or a JSON schema.
            method: "json_schema" and "json_mode" generate the object as the answer. The schema is
                not shown to the model, so the prompt should describe the object. With
                "function_calling" the schema is shown to the model as a tool.
            include_raw: Whether to return a dict with "raw", "parsed" and "parsing_error".
            strict: Passed to the schema's conversion.
            **kwargs: Further arguments of each call.

        Returns:
            A runnable that returns instances of a pydantic class, or dicts for other schemas.

        Raises:
            ValueError: There is no such method.
        """
        if method == "function_calling":
            return super().with_structured_output(
                schema, include_raw=include_raw, strict=strict, **kwargs
            )
        if method not in ("json_schema", "json_mode"):
            raise ValueError(
                f"there is no method {method!r}: use json_schema, function_calling or json_mode"
            )
        model = self.bind(
            schema=_to_json_schema(schema, strict),
            ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
            **kwargs,
        )
        parser = output_parser(schema)
        if not include_raw:
            return model | parser
        parse = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        skip_parsing = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parse.with_fallbacks(
            [skip_parsing], exception_key="parsing_error"
        )

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Count the prompt tokens of a conversation, with its chat template and tools.

        Args:
            messages: The conversation.
            tools: Tools in any form that LangChain accepts.

        Returns:
            The number of tokens.
        """
        openai_tools = [convert_to_openai_tool(tool) for tool in tools or ()]
        return len(self.gem.tokenize_chat(to_openai_messages(messages), openai_tools))

    @property
    def _llm_type(self) -> str:
        return "gem-chat"

    def _sampling_settings(self) -> dict[str, Any]:
        settings = super()._sampling_settings()
        if self.parallel_tool_calls is not None:
            settings["parallel_tool_calls"] = self.parallel_tool_calls
        return settings

    def _resolve_model_profile(self) -> ModelProfile:
        return ModelProfile(text_inputs=True, tool_calling=True, structured_output=True)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        gem, settings = self._prepare_call(stop, kwargs)
        n = settings.pop("n", self.n)
        replies = gem.sample_replies(to_openai_messages(messages), n, **settings)
        return ChatResult(
            generations=[ChatGeneration(message=_to_message(gem, reply)) for reply in replies]
        )

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await run_in_thread(self._generate, messages, stop, **kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Generator[ChatGenerationChunk, None, None]:
        gem, settings = self._prepare_call(stop, kwargs)
        if (n := settings.pop("n", self.n)) > 1:
            raise InputError(f"a stream has one reply, not n={n}: use invoke, or n=1")
        stream = TextStream(gem.stream_chat(to_openai_messages(messages), **settings))
        for delta in stream:
            yield ChatGenerationChunk(message=AIMessageChunk(content=delta))
        reply = stream.generation
        last_chunk = AIMessageChunk(
            content="",
            additional_kwargs=reasoning_content(reply),
            tool_call_chunks=[
                *(to_tool_call_chunk(call, index) for index, call in enumerate(reply.tool_calls)),
                *map(to_invalid_tool_call_chunk, reply.invalid_tool_calls),
            ],
            usage_metadata=usage_metadata(reply),
            response_metadata=response_metadata(gem, reply),
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last_chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in iterate_in_thread(self._stream(messages, stop, **kwargs)):
            yield chunk


def _to_message(gem: Gem, reply: ChatReply) -> AIMessage:
    return AIMessage(
        content=reply.text,
        additional_kwargs=reasoning_content(reply),
        tool_calls=[to_langchain_tool_call(call) for call in reply.tool_calls],
        invalid_tool_calls=[to_invalid_tool_call(call) for call in reply.invalid_tool_calls],
        usage_metadata=usage_metadata(reply),
        response_metadata=response_metadata(gem, reply),
    )


def _to_json_schema(schema: dict[str, Any] | type, strict: bool | None) -> dict[str, Any]:
    """The whole schema: LangChain's conversion leaves out what is beside an object's properties,
    and writes references out, of which recursive ones are lost."""
    if isinstance(schema, dict) and "parameters" not in schema:  # which a function has
        return schema
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    return convert_to_json_schema(schema, strict=strict)
