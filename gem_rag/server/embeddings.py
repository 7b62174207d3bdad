"""The OpenAI form of embedding requests and errors, with the fields that vLLM adds to it.

POST /v1/embeddings
{"model": ..., "input": text, texts, token ids or lists of them, or "messages": a conversation,
 "encoding_format": "float" or "base64", "dimensions": n,
 "input_type" (or "prompt_name"): "query" or "document",
 "truncate_prompt_tokens": n or -1, "truncation_side": "left" or "right",
 "add_special_tokens": true or false}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import ConfigDict, Field

from gem_rag.server.bodies import Body
from gem_rag.server.errors import ApiError
from gem_rag.server.routes import Answer, post_json

Use = Literal["query", "document"]


class EmbeddingRequest(Body):
    """What to embed, and in what form to return it.

    Fields unknown here are ignored, as OpenAI and vLLM do; those of vLLM that would change a
    vector, and cannot here, have the one value that is allowed.
    """

    model_config = ConfigDict(extra="ignore")
    hints: ClassVar[Mapping[str, str]] = {
        "input": "Input should be a text, a list of texts, token ids or a list of them"
    }

    input: str | list[str] | list[int] | list[list[int]] | None = None
    messages: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    input_type: Use | None = None
    prompt_name: Use | None = None
    user: str | None = None
    request_id: str | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1)
    truncation_side: Literal["left", "right"] | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: None = None
    padding: Literal["do_not_pad"] | None = None
    use_activation: Literal[True] | None = None
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "native"

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The inputs as a list. Raises ApiError if there is nothing to embed."""
        value: Any = self.input
        if isinstance(value, str) or (value and isinstance(value[0], int)):
            value = [value]
        if not value:
            raise ApiError("input has 0 entries: give at least one", param="input")
        return list(value)

    @property
    def use(self) -> Use | None:
        """Which prompt was asked for, if one was. Raises ApiError for two that differ."""
        if self.input_type and self.prompt_name and self.input_type != self.prompt_name:
            raise ApiError("input_type and prompt_name differ: give one", param="prompt_name")
        return self.input_type or self.prompt_name

    def check(self) -> None:
        if self.input is None and self.messages is None:
            raise ApiError("input: Field required", param="input")
        if self.input is not None and self.messages is not None:
            raise ApiError("input and messages are both given: give one", param="messages")

    @classmethod
    def request_schema(cls) -> dict[str, Any]:
        """The schema, where what is left out is not there rather than null."""
        schema = super().request_schema()
        for name in ("input", "messages"):
            of_kinds = schema["properties"][name]
            of_kinds["anyOf"] = [kind for kind in of_kinds["anyOf"] if kind != {"type": "null"}]
            del of_kinds["default"]
        return {**schema, "oneOf": [{"required": ["input"]}, {"required": ["messages"]}]}


def embeddings_router(answer: Answer[EmbeddingRequest]) -> APIRouter:
    """The route POST /v1/embeddings.

    Args:
        answer: Answers a request or raises ApiError.
    """
    router = APIRouter()
    post_json(router, "/v1/embeddings", EmbeddingRequest, answer)
    return router
