"""`ChatGem`: a model that answers conversations, calls tools and fills in schemas."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Sequence
from operator import itemgetter
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from gem_rag.aio import iterate_in_thread, run_in_thread
from gem_rag.generation.sampling import TextStream
from langchain_gem._language import GemLanguageModel, origin, usage
from langchain_gem._messages import choice_name, to_chunk, to_langchain, to_openai
from langchain_gem._shared import GemModel


class ChatGem(GemLanguageModel, BaseChatModel):
    """Answers conversations by the model's chat template, or without one.

    streaming: whether `invoke` streams within, so that callbacks see each piece.
    """

    model_config = GemModel.model_config  # else BaseChatModel's, which passes over wrong fields

    streaming: bool = False

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A model that may call tools; a call always follows its tool's schema.

        tool_choice: "auto" (or None) lets the model choose, "any" ("required", True) makes it
            call one of them, a tool's name (also in OpenAI's form) that one, "none" none.
        """
        shown = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        return self.bind(tools=shown, tool_choice=choice_name(tool_choice), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """A model whose answers are objects of a schema, which holds while they are written.

        method: "json_schema" and "json_mode" write the object as the answer; the model is not
            told the schema, so say in the prompt what is wanted. "function_calling" shows it to
            the model as a tool to call.
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
            schema=convert_to_json_schema(schema, strict=strict),
            ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
            **kwargs,
        )
        parser = _parser(schema)
        if not include_raw:
            return model | parser
        parsed = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks(
            [unparsed], exception_key="parsing_error"
        )

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens that the model reads of a conversation, its template's and tools' included."""
        shown = [convert_to_openai_tool(tool) for tool in tools or ()]
        return len(self.gem.encode_chat(to_openai(messages), shown))

    @property
    def _llm_type(self) -> str:
        return "gem-chat"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        gem, settings = self._call(stop, kwargs)
        reply = gem.chat(to_openai(messages), **settings)
        message = AIMessage(
            content=reply.text,
            tool_calls=[to_langchain(call) for call in reply.calls],
            usage_metadata=usage(reply),
            response_metadata=origin(gem, reply),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

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
        gem, settings = self._call(stop, kwargs)
        pieces = TextStream(gem.stream_chat(to_openai(messages), **settings))
        for piece in pieces:
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        reply = pieces.generation
        end = AIMessageChunk(
            content="",
            tool_call_chunks=[to_chunk(call, index) for index, call in enumerate(reply.calls)],
            usage_metadata=usage(reply),
            response_metadata=origin(gem, reply),
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=end)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in iterate_in_thread(self._stream(messages, stop, **kwargs)):
            yield chunk


def _parser(schema: dict[str, Any] | type) -> JsonOutputParser:
    """Reads a text of the schema: to an instance of a pydantic class, or to a dict."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()
