"""The OpenAI form of embedding requests and errors, with the fields that vLLM adds to it.

POST /v1/embeddings
{"model": ..., "input": text, texts, token ids or lists of them, or "messages": a conversation,
 "encoding_format": "float" or "base64", "dimensions": n,
 "input_type" (or "prompt_name"): "query" or "document",
 "truncate_prompt_tokens": n or -1, "truncation_side": "left" or "right",
 "add_special_tokens": true or false}
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

MAX_BODY_BYTES = 64 << 20
Use = Literal["query", "document"]
_CLIENT_CLOSED_REQUEST = 499  # a status for logs; nobody receives it
_ERROR_TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        message: What is wrong with it.
        param: The field that is wrong, if one is.
        status: Of the HTTP response.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.status = message, param, status

    def body(self) -> dict[str, Any]:
        """The response's JSON: OpenAI's error object, its type and code as vLLM has them."""
        return {
            "error": {
                "message": self.message,
                "type": _ERROR_TYPES.get(self.status) or HTTPStatus(self.status).phrase,
                "param": self.param,
                "code": self.status,
            }
        }


class EmbeddingRequest(BaseModel):
    """What to embed, and in what form to return it.

    Fields unknown here are ignored, as OpenAI and vLLM do; those of vLLM that would change a
    vector, and cannot here, have the one value that is allowed.
    """

    model_config = ConfigDict(extra="ignore")

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


Answer = Callable[[EmbeddingRequest, Request], Awaitable[Response]]


def embeddings_router(answer: Answer) -> APIRouter:
    """The route POST /v1/embeddings.

    Args:
        answer: Answers a request or raises ApiError.
    """

    async def embeddings(raw_request: Request) -> Response:
        """Embed texts, token ids or a conversation with the weights that also generate here."""
        try:
            body = await _read_body(raw_request)
            # In a thread, and before the answer begins: parsing a large body takes a while.
            request = await asyncio.to_thread(parse_request, body)
            response = await answer(request, raw_request)
        except ApiError as error:
            return JSONResponse(error.body(), status_code=error.status)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        return response

    either = [{"required": ["input"]}, {"required": ["messages"]}]
    schema = {"application/json": {"schema": {**_request_schema(), "oneOf": either}}}
    errors = (400, 404, 413, 500, 503)
    router = APIRouter()
    router.post(
        "/v1/embeddings",
        openapi_extra={"requestBody": {"content": schema, "required": True}},
        responses={status: {"description": "OpenAI's error object"} for status in errors},
        response_model=None,
    )(embeddings)
    return router


def _request_schema() -> dict[str, Any]:
    """The request's JSON schema, where what is left out is not there rather than null."""
    schema = EmbeddingRequest.model_json_schema()
    for name in ("input", "messages"):
        of_kinds = schema["properties"][name]
        of_kinds["anyOf"] = [kind for kind in of_kinds["anyOf"] if kind != {"type": "null"}]
        del of_kinds["default"]
    return schema


async def _read_body(request: Request) -> bytes:
    """The body; raises ApiError if it is not JSON by its content type, or too large to parse."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            f"the content type is {content_type or 'missing'}: send the body as application/json"
        )
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(
                f"the body has more than {MAX_BODY_BYTES >> 20} MiB: send fewer inputs at once",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
    return bytes(body)


def parse_request(body: bytes) -> EmbeddingRequest:
    """The request in an HTTP body. Raises ApiError naming what is wrong with it."""
    try:
        request = EmbeddingRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise ApiError(f"the body is not valid JSON: {first['ctx']['error']}") from None
        name = str(first["loc"][0]) if first["loc"] else None
        if name == "input":  # one error for each kind it might be
            first["msg"] = "Input should be a text, a list of texts, token ids or a list of them"
        where = f"{name}: " if name else "the body: "
        raise ApiError(where + first["msg"], param=name) from None
    if request.input is None and request.messages is None:
        raise ApiError("input: Field required", param="input")
    if request.input is not None and request.messages is not None:
        raise ApiError("input and messages are both given: give one", param="messages")
    return request
