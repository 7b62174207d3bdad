"""`ModelSwitch`: some chats are answered by our route, others by vLLM's."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gem_rag.server.catalog import PREFIX

_PATH = "/v1/chat/completions"


class ModelSwitch:
    """ASGI middleware that looks at what a chat asks for.

    Args:
        app: Answers all other requests.
        chats: Answers chats with indexes.
        takes_tools: Whether it also answers those with tools: vLLM's route lets a model choose
            whether to call one only where it has a parser for the model's own form of calls.
    """

    def __init__(self, app: ASGIApp, chats: ASGIApp, takes_tools: bool) -> None:
        self._app, self._chats, self._takes_tools = app, chats, takes_tools

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

        await (self._chats if self._is_ours(body) else self._app)(scope, replay, send)

    def _is_ours(self, body: bytearray) -> bool:
        if f'"{PREFIX}'.encode() not in body and b'"tools"' not in body:
            return False  # most bodies need not be parsed twice
        try:
            request = json.loads(body)
        except ValueError:
            return False
        if not isinstance(request, dict):
            return False
        if self._takes_tools and request.get("tools"):
            return True
        return str(request.get("model")).startswith(PREFIX)
