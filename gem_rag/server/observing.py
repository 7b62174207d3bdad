"""What operators see of requests: one line of JSON each, without their texts, and metrics."""

from __future__ import annotations

import json
import logging
import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gem_rag.server import metrics

_KEY = "gem_rag"  # in a request's scope, of what its log line says
_LEFT = 499  # the client
_log = logging.getLogger("gem_rag.server")


class Observed:
    """ASGI middleware that counts, times and logs requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes: dict[str, Any] = {"id": _request_id(scope), "status": _LEFT}
        scope[_KEY] = notes
        start = time.perf_counter()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes["status"] = message["status"]
                message = {
                    **message,
                    "headers": [*message["headers"], (b"x-request-id", notes["id"].encode())],
                }
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            _record(scope, notes, time.perf_counter() - start)


def note(request: Request, **facts: Any) -> None:
    """Add facts to a request's line in the log; they may not hold texts of clients or documents."""
    request.scope.get(_KEY, {}).update(facts)


def count_tokens(request: Request, prompt: int, generated: int, reused: int) -> dict[str, Any]:
    """Count tokens of a request for operators; the `usage` that its client is told.

    Args:
        request: The request.
        prompt: Of its prompts.
        generated: Of what was generated.
        reused: Of those of the prompts, which had been read before.
    """
    metrics.PROMPT_TOKENS.inc(prompt)
    metrics.REUSED_TOKENS.inc(reused)
    metrics.GENERATED_TOKENS.inc(generated)
    note(request, prompt_tokens=prompt, reused_tokens=reused, generated_tokens=generated)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def _request_id(scope: Scope) -> str:
    """The client's own, if it is a short word, or a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    name = given.decode("latin-1")
    return name if 0 < len(name) <= 64 and name.replace("-", "").isalnum() else uuid.uuid4().hex


def _record(scope: Scope, notes: dict[str, Any], seconds: float) -> None:
    route = getattr(scope.get("route"), "path", "")
    metrics.REQUESTS.labels(route, str(notes["status"])).inc()
    metrics.SECONDS.labels(route).observe(seconds)
    facts = {"method": scope["method"], "route": route, "seconds": round(seconds, 4), **notes}
    _log.info("request", extra={_KEY: facts})


class JsonFormatter(logging.Formatter):
    """Log records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _KEY, {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
