"""Answers of a schema as objects: complete ones only, of all of the schema."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.utils.pydantic import is_basemodel_subclass


class _Complete(JsonOutputParser):
    """Parses JSON that is complete; while it is streamed, as far as it goes.

    LangChain's own parser repairs JSON that was cut, into objects with wrong values.
    """

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if partial:
            return super().parse_result(result, partial=True)
        _check(result[0])
        return super().parse_result(result)

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        last: Any = None

        def noted() -> Iterator[str | BaseMessage]:
            nonlocal last
            for piece in input:
                last = piece if last is None else last + piece
                yield piece

        yield from super()._transform(noted())
        _check_whole(last)

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        last: Any = None

        async def noted() -> AsyncIterator[str | BaseMessage]:
            nonlocal last
            async for piece in input:
                last = piece if last is None else last + piece
                yield piece

        async for parsed in super()._atransform(noted()):
            yield parsed
        _check_whole(last)


class _CompleteObject(_Complete, PydanticOutputParser[Any]):
    """As `_Complete`, instances of a pydantic class."""


def output_parser(schema: dict[str, Any] | type) -> JsonOutputParser:
    """A parser of answers of a schema."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _CompleteObject(pydantic_object=schema)
    return _Complete()


def _check_whole(message: Any) -> None:
    if isinstance(message, BaseMessage):
        _check(ChatGeneration(message=message))


def _check(generation: Generation) -> None:
    """Raises OutputParserException if the text is not of the schema that it was held to."""
    error = ""
    if isinstance(generation, ChatGeneration):
        error = generation.message.response_metadata.get("schema_error", "")
    if not error:
        try:
            json.loads(generation.text)
        except ValueError as problem:
            error = f"it is not JSON ({problem})"
    if error:
        raise OutputParserException(
            f"the model's answer is not of the schema: {error}", llm_output=generation.text
        )
