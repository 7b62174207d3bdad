"""A server of gem-tiny over a small index: its app, and the app on a port of loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from gem_rag.model import Gem
from gem_rag.rag.index import Index
from gem_rag.server.app import create_app
from gem_rag.server.catalog import Catalog, IndexFolder
from gem_rag.server.settings import Settings

MODEL = "gem-tiny"
# A second name of the model, for clients that know the names of OpenAI's models only.
ALIAS = "gpt-4o-mini"
QUESTION = "How are lists created?"
ASKED = [{"role": "user", "content": QUESTION}]
LISTS = (
    "# Lists\n\nA list is a mutable sequence. Lists are created by square brackets.\n\n"
    "# Tuples\n\nA tuple is an immutable sequence of values.\n"
)
DEADLINE = 30.0  # seconds
# gem-tiny goes on with this to the end of its context.
ENDLESS = {"model": MODEL, "prompt": "A list", "temperature": 0, "max_tokens": 1000}


def make_index(folder: Path, gem: Gem) -> IndexFolder:
    """A new index of one document, called "docs"."""
    documents = folder / "manual"
    documents.mkdir()
    (documents / "lists.md").write_text(LISTS)
    Index.open(folder / "index", gem).sync(documents)
    return IndexFolder("docs", folder / "index")


def make_app(gem: Gem, *folders: IndexFolder, **settings: Any) -> FastAPI:
    """The app of a model and indexes."""
    return create_app(Catalog.open(gem, folders, Settings(**settings), names=[MODEL, ALIAS]))


@contextmanager
def listening(app: FastAPI) -> Iterator[tuple[str, uvicorn.Server]]:
    """The app on a free port: its address, without a slash at its end, and what runs it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=10)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert wait_until(lambda: server.started or not thread.is_alive())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(DEADLINE)


def wait_until(holds: Callable[[], bool], seconds: float = DEADLINE) -> bool:
    """Whether something comes to hold before the deadline."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def metric(url: str, name: str, headers: dict[str, str] | None = None) -> float:
    """The sum of the values of a metric that Prometheus would read."""
    lines = httpx.get(f"{url}/metrics", headers=headers, follow_redirects=True).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def refusal(response: Any, status: int) -> dict[str, Any]:
    """OpenAI's error object in a response of this status."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert "\n" not in error["message"]
    return error
