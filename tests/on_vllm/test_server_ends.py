"""What clients of `gem-rag serve --engine vllm` hear when the server stops or its engine dies."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import pytest
from served import Server, serving
from serving import MODEL, QUESTION, make_index, metric, refusal, wait_until

from gem_rag.model import Gem

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

EMBEDDINGS = "/v1/embeddings"
KEY = {"Authorization": "Bearer secret"}
TEXTS = [f"Item {n}" + " vectors of text" * (n * 7 % 19) for n in range(64)]
DEADLINE = 60  # seconds


def test_a_shutdown_answers_the_embeddings_that_are_under_way(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    large = {"model": MODEL, "input": TEXTS * 15}
    with serving(tmp_path_factory.mktemp("draining")) as server, ThreadPoolExecutor(1) as pool:
        url = f"{server.url}{EMBEDDINGS}"
        answer = pool.submit(httpx.post, url, json=large, timeout=2 * DEADLINE)
        assert wait_until(
            lambda: metric(server.url, "gem_rag:embedding_rows_waiting") > 0, DEADLINE
        )
        server.process.terminate()
        assert len(answer.result().json()["data"]) == len(large["input"])
        assert server.process.wait(DEADLINE) == 0


def test_keys_and_a_dying_engine(
    plain_tiny: Gem, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEM_RAG_API_KEY", "secret other")
    folder = make_index(tmp_path_factory.mktemp("indexed"), plain_tiny)
    index = f"docs={folder.folder}"
    with serving(tmp_path_factory.mktemp("dying"), "--index", index) as server:
        for path in ("/v1/rag/ask", "/v1/chat/completions", "/v1/completions", "/mcp", "/metrics"):
            refusal(httpx.post(f"{server.url}{path}", json={"question": QUESTION}), 401)
        assert ask(server).status == httpx.codes.OK
        nobody_waits_for_a_dead_engine(server)
        assert wait_until(lambda: ask(server).status in {503, 0}, DEADLINE)
        assert wait_until(lambda: not server.is_healthy(), DEADLINE)


class Ended(NamedTuple):
    """How a request ended; status 0 if nobody was there to answer it."""

    began: float
    status: int
    message: str


def nobody_waits_for_a_dead_engine(server: Server) -> None:
    """Kill the engine while clients embed."""
    with ThreadPoolExecutor(4) as pool:
        ended: list[Ended] = []
        callers = [pool.submit(embed_while_that_works, server, ended) for _ in range(4)]
        assert wait_until(lambda: len(ended) >= 4, DEADLINE)
        died = time.monotonic()
        server.engine_processes()[-1].kill()  # SIGKILL
        for caller in callers:
            caller.result(DEADLINE)
    assert {end.status for end in ended} <= {200, 503, 0}
    assert all("engine has died" in end.message for end in ended if end.status == 503)
    assert all(end.status for end in ended if end.began < died), "a request got no answer"
    assert any(end.status != 200 for end in ended)
    assert embed(server).status in {503, 0}


def embed_while_that_works(server: Server, ended: list[Ended]) -> None:
    """Embed the same texts again and again, until that fails or the deadline has passed."""
    deadline = time.monotonic() + 2 * DEADLINE
    working = True
    while working and time.monotonic() < deadline:
        end = embed(server)
        ended.append(end)
        working = end.status == httpx.codes.OK


def embed(server: Server) -> Ended:
    return post(server, EMBEDDINGS, {"model": MODEL, "input": TEXTS, "encoding_format": "base64"})


def ask(server: Server) -> Ended:
    return post(server, "/v1/rag/ask", {"question": QUESTION})


def post(server: Server, path: str, body: Any) -> Ended:
    began = time.monotonic()
    try:
        response = httpx.post(f"{server.url}{path}", json=body, headers=KEY, timeout=DEADLINE)
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        return Ended(began, 0, str(error))
    message = "" if response.is_success else refusal(response, 503)["message"]
    return Ended(began, response.status_code, message)
