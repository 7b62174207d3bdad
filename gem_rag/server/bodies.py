"""Bodies of requests: read within bounds, and refused by the name of what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.server.errors import ApiError

MAX_BODY_BYTES = 64 << 20
_TYPES = ("str", "int", "float", "bool", "ContentPart", "RankedText")


class Part(BaseModel):
    """A part of a body; fields that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Body(Part):
    """A request's JSON.

    Attributes:
        hints: What to say of a field that is of none of several types, by its name.
    """

    hints: ClassVar[Mapping[str, str]] = {}

    def check(self) -> None:
        """Raise ApiError for fields that cannot be obeyed, or do not go together."""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """The request in an HTTP body. Raises ApiError naming what is wrong with it."""
        try:
            request = cls.model_validate_json(body, strict=True)
        except ValidationError as error:
            raise _refusal(cls, error) from None
        request.check()
        return request

    @classmethod
    def request_schema(cls) -> dict[str, Any]:
        """The JSON schema of the body, in one piece."""
        schema = cls.model_json_schema()
        inlined: dict[str, Any] = _inline(schema, schema.pop("$defs", {}))
        return inlined


B = TypeVar("B", bound=Body)


async def read_body(request: Request) -> bytes:
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
            raise too_large(MAX_BODY_BYTES)
    return bytes(body)


def too_large(most: int) -> ApiError:
    """What to tell a client whose body has more bytes than are read."""
    return ApiError(
        f"the body has more than {most:,} bytes: send less at once",
        status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    )


def _refusal(kind: type[Body], error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(f"the body is not valid JSON: {first['ctx']['error']}")
    if not first["loc"]:
        return ApiError(f"the body: {first['msg']}")
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        field = ".".join(map(str, first["loc"]))
        return ApiError(
            f"there is no field {field!r} here{did_you_mean(field, kind.model_fields)}: leave it "
            "out",
            param=name,
        )
    where = name + "".join(map(_step, first["loc"][1:]))
    return ApiError(f"{where}: {kind.hints.get(name) or first['msg']}", param=name)


def _step(part: str | int) -> str:
    """A step on the way to what is wrong; one of several types that it is not is no step."""
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part.isidentifier() and part not in _TYPES else ""


def _inline(schema: Any, parts: Mapping[str, Any]) -> Any:
    """A schema with the parts that it refers to in their places."""
    if isinstance(schema, list):
        return [_inline(entry, parts) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {key: _inline(value, parts) for key, value in schema.items()}
