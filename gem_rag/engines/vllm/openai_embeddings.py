"""The OpenAI form of embedding requests and responses, for every server of this package.

POST /v1/embeddings
{"model": ..., "input": text, texts, token ids or lists of them,
 "encoding_format": "float" or "base64", "dimensions": n,
 "input_type" (or "prompt_name"): "query" or "document"}
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gem_rag.core.arrays import FloatArray
from gem_rag.core.config import GemConfig
from gem_rag.core.tokenizer import SafeTokenizer

MAX_INPUTS = 2048
Use = Literal["query", "document"]


class ApiError(Exception):
    """A request that cannot be answered.

    status: of the HTTP response.
    message, type, param, code: as in OpenAI's error object.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code
        self.status, self.type = status, type

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        return {
            "error": {
                "message": self.message, "type": self.type, "param": self.param, "code": self.code
            }
        }  # fmt: skip


class EmbeddingRequest(BaseModel):
    """What is embedded and how it is wanted back. Fields unknown here are ignored, as by OpenAI."""

    model_config = ConfigDict(extra="ignore")

    input: str | list[str] | list[int] | list[list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    input_type: Use | None = None
    prompt_name: Use | None = None
    user: str | None = None

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The inputs as a list. Raises ApiError if there is nothing, or too much, to embed."""
        value: Any = self.input
        if isinstance(value, str) or (value and isinstance(value[0], int)):
            value = [value]
        if not 0 < len(value) <= MAX_INPUTS:
            raise ApiError(
                f"input has {len(value)} entries: give from 1 to {MAX_INPUTS}", param="input"
            )
        return list(value)

    @property
    def use(self) -> Use | None:
        """Which prompt was asked for, if one was. Raises ApiError for two that differ."""
        if self.input_type and self.prompt_name and self.input_type != self.prompt_name:
            raise ApiError("input_type and prompt_name differ: give one", param="prompt_name")
        return self.input_type or self.prompt_name


def embeddings_router(answer: Callable[[EmbeddingRequest], Awaitable[dict[str, Any]]]) -> APIRouter:
    """The route POST /v1/embeddings; `answer` gives the response's JSON or raises ApiError."""

    async def embeddings(request: Request) -> JSONResponse:
        """Embed texts, or token ids, with the model that this server generates with."""
        try:
            return JSONResponse(await answer(parse_request(await request.body())))
        except ApiError as error:
            return JSONResponse(error.body(), status_code=error.status)

    schema = {"application/json": {"schema": EmbeddingRequest.model_json_schema()}}
    router = APIRouter()
    router.post(
        "/v1/embeddings",
        openapi_extra={"requestBody": {"content": schema, "required": True}},
        responses={status: {"description": "OpenAI's error object"} for status in (400, 404, 503)},
    )(embeddings)
    return router


def parse_request(body: bytes) -> EmbeddingRequest:
    """The request in an HTTP body. Raises ApiError naming what is wrong with it."""
    try:
        return EmbeddingRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise ApiError(f"the body is not valid JSON: {first['ctx']['error']}") from None
        name = str(first["loc"][0]) if first["loc"] else None
        if name == "input" and first["type"] != "missing":  # one error for each kind it might be
            first["msg"] = "Input should be a text, a list of texts, token ids or a list of them"
        where = f"{name}: " if name else "the body: "
        raise ApiError(where + first["msg"], param=name) from None


class EmbeddingCodec:
    """Turns requests into token rows and vectors into responses, for one model.

    text: its tokenizer.
    config: whose prompts are put before texts; without `input_type` the document's.
    vocabulary: token ids are below this.
    max_length: most tokens of an input.
    dim: length of its embeddings.
    names: by which requests may call the model; the first is its own.
    """

    def __init__(
        self,
        text: SafeTokenizer,
        config: GemConfig,
        *,
        vocabulary: int,
        max_length: int,
        dim: int,
        names: Sequence[str],
    ) -> None:
        self._tokenizer, self._config, self._names = text, config, list(names)
        self._vocabulary, self._max_length, self._dim = vocabulary, max_length, dim

    def rows(self, request: EmbeddingRequest) -> list[list[int]]:
        """Token ids of each input. Raises ApiError for a request that cannot be answered."""
        if request.model is not None and request.model not in self._names:
            raise ApiError(
                f"there is no model {request.model!r} here: use {self._names[0]!r}",
                param="model", code="model_not_found", status=404, type="not_found_error",
            )  # fmt: skip
        if request.dimensions is not None and request.dimensions > self._dim:
            raise ApiError(
                f"dimensions is {request.dimensions} and embeddings have {self._dim}",
                param="dimensions",
            )
        inputs = request.inputs
        rows = self._tokenize_inputs(inputs, request.use)
        for number, row in enumerate(rows):
            if len(row) > self._max_length:
                raise ApiError(
                    f"input {number} has {len(row)} tokens and the model embeds at most "
                    f"{self._max_length}: split it",
                    param="input", code="context_length_exceeded",
                )  # fmt: skip
        return rows

    def response(
        self, request: EmbeddingRequest, rows: Sequence[Sequence[int]], vectors: FloatArray
    ) -> dict[str, Any]:
        """The response's JSON for vectors [inputs, dim] of these token rows."""
        if request.dimensions is not None:
            vectors = vectors[:, : request.dimensions]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        as_text = request.encoding_format == "base64"
        tokens = sum(map(len, rows))
        return {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _base64(vector) if as_text else vector.tolist(),
                }
                for index, vector in enumerate(vectors)
            ],
            "model": request.model or self._names[0],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _tokenize_inputs(
        self, inputs: Sequence[str | list[int]], use: Use | None
    ) -> list[list[int]]:
        texts = [entry for entry in inputs if isinstance(entry, str)]
        for number, entry in enumerate(inputs):
            if not (entry.strip() if isinstance(entry, str) else entry):
                raise ApiError(f"input {number} is empty", param="input")
        if texts:
            prompt = self._config.prompts[use or "document"]
            return [encoded.ids for encoded in self._tokenizer.encode([prompt + t for t in texts])]
        if use is not None and self._config.prompts[use]:
            raise ApiError(
                "token ids are embedded as they are, without a prompt: leave input_type out, or "
                "give texts", param="input_type",
            )  # fmt: skip
        for number, row in enumerate(inputs):
            for token in row:
                if not 0 <= int(token) < self._vocabulary:
                    raise ApiError(
                        f"input {number} holds token {token}, and the model's tokens are 0 to "
                        f"{self._vocabulary - 1}: encode texts with its own tokenizer, or send "
                        "them as they are", param="input",
                    )  # fmt: skip
        return [list(map(int, row)) for row in inputs]


def _base64(vector: FloatArray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
