"""`ModelSwitch`: chats with an index are answered by our route, others by vLLM's."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gem_rag.server.catalog import PREFIX

_PATH = "/v1/chat/completions"


class ModelSwitch:
    """ASGI middleware that looks at the model of a chat.

    Args:
        app: Answers all other requests.
        chats: Answers chats with indexes.
    """

    def __init__(self, app: ASGIApp, chats: ASGIApp) -> None:
        self._app, self._chats = app, chats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        has_more = True
        while has_more:
            message = await receive()
            body += message.get("body", b"")
            has_more = message["type"] == "http.request" and message.get("more_body", False)
        unread = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await (self._chats if _asks_index(body) else self._app)(scope, replay, send)


def _asks_index(body: bytearray) -> bool:
    if f'"{PREFIX}'.encode() not in body:  # most bodies need not be parsed twice
        return False
    try:
        request = json.loads(body)
    except ValueError:
        return False
    model = request.get("model") if isinstance(request, dict) else None
    return isinstance(model, str) and model.startswith(PREFIX)
