"""`ApiError`: a request that cannot be answered, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from gem_rag.errors import GemError, InputError

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    429: "RateLimitError",
    500: "InternalServerError",
}


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        message: What is wrong with it.
        param: The field that is wrong, if one is.
        status: Of the HTTP response.
        headers: Of the HTTP response.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status = message, param, status
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The response's JSON: OpenAI's error object, its type and code as vLLM has them."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status) or HTTPStatus(self.status).phrase,
                "param": self.param,
                "code": self.status,
            }
        }

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def api_error(error: GemError, param: str | None = None) -> ApiError:
    """What a client is told of an error of the library: its own sentence."""
    status = HTTPStatus.BAD_REQUEST if isinstance(error, InputError) else 503
    return ApiError(str(error), param=param, status=status)
