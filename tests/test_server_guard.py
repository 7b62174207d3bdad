"""Who may come in, how many at once, with how much, for how long, and what of it is logged."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient
from serving import ASKED, ENDLESS, MODEL, QUESTION, make_app, make_index, refusal, wait_until

import gem_rag
from gem_rag.errors import InputError
from gem_rag.model import Gem
from gem_rag.server.observing import JsonFormatter
from gem_rag.server.settings import Settings, hosts_for

SHORT = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 4}
CHAT, DOCUMENTS = "/v1/chat/completions", "/v1/rag/documents"
URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def gem() -> Iterator[Gem]:
    with gem_rag.load(MODEL) as loaded:
        yield loaded


def serve(gem: Gem, *folders: Any, url: str = URL, **settings: Any) -> TestClient:
    return TestClient(make_app(gem, *folders, **settings), base_url=url)


# -- keys ----------------------------------------------------------------------------------------


def test_every_route_but_health_and_the_page_needs_the_key(gem: Gem) -> None:
    client = serve(gem, api_keys=("secret", "other"))
    routes = [
        (method, path.replace("{name}", MODEL))
        for path, methods in client.get(
            "/openapi.json", headers={"Authorization": "Bearer secret"}
        ).json()["paths"].items()
        for method in methods
    ]  # fmt: skip
    routes += [("post", "/mcp"), ("get", "/openapi.json"), ("get", "/nowhere")]
    assert len(routes) > 20
    for method, path in routes:
        if path == "/health":
            continue
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            response = client.request(method, path, headers=headers)
            assert "Authorization: Bearer KEY" in refusal(response, 401)["message"], path
            assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/", "/page/page.js"):
        assert client.get(path).status_code == 200
    for key in ("secret", "other"):
        response = client.post(CHAT, json=SHORT, headers={"Authorization": f"bearer {key}"})
        assert response.status_code == 200


def test_keys_that_could_not_stand_in_a_header_are_refused() -> None:
    for key in ("", "a b", "é", "a\n"):
        with pytest.raises(InputError, match="an API key is made of"):
            Settings(api_keys=(key,))


# -- names and origins ---------------------------------------------------------------------------


def test_a_server_on_loopback_knows_its_names_alone(gem: Gem) -> None:
    client = serve(gem, allowed_hosts=hosts_for("127.0.0.1", ()))
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"):
        assert client.get("/health", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        for path in ("/", "/mcp", "/v1/models", "/page/page.js"):
            refusal(client.get(path, headers={"Host": host}), 403)


def test_names_may_be_allowed() -> None:
    assert "box.local" in hosts_for("0.0.0.0", ("box.local",))
    assert hosts_for("0.0.0.0", ()) == ()
    assert hosts_for("::1", ()) == hosts_for("localhost", ()) == hosts_for("127.0.0.1", ())


def test_pages_of_strangers_may_not_write(gem: Gem, tmp_path: Path) -> None:
    client = serve(gem, make_index(tmp_path, gem), allowed_origins=("https://friend.example",))
    files = [("file", ("a.txt", b"Text."))]
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9000"):
        response = client.post(DOCUMENTS, files=files, headers={"Origin": origin})
        assert "may not call this server" in refusal(response, 403)["message"]
    for origin in ("http://127.0.0.1:8000", "https://friend.example"):
        response = client.post(DOCUMENTS, files=files, headers={"Origin": origin})
        assert response.status_code == 200


def test_other_origins_are_let_in_only_if_they_are_named(gem: Gem) -> None:
    asks = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    closed = serve(gem).options(CHAT, headers=asks)
    assert "access-control-allow-origin" not in closed.headers
    client = serve(gem, allowed_origins=("https://friend.example",), api_keys=("secret",))
    answer = client.options(CHAT, headers=asks)
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    other = client.options(CHAT, headers={**asks, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


# -- how much ------------------------------------------------------------------------------------


def test_bodies_beyond_the_limit_are_not_read(gem: Gem, tmp_path: Path) -> None:
    client = serve(gem, make_index(tmp_path, gem), max_body_bytes=1000)
    body = json.dumps({**SHORT, "user": "x" * 1000}).encode()
    headers = {"content-type": "application/json"}

    def parts() -> Iterator[bytes]:  # without a length beforehand
        yield body[:500]
        yield body[500:]

    for content in (body, parts()):
        response = client.post(CHAT, content=content, headers=headers)
        assert "more than 1,000 bytes" in refusal(response, 413)["message"]
    response = client.post(DOCUMENTS, files=[("file", ("a.txt", b"x" * 1000))])
    refusal(response, 413)
    assert client.post(CHAT, json=SHORT).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/embeddings", {"input": ["a"] * 4}, "input"),
        ("/v1/completions", {"model": MODEL, "prompt": ["a"] * 4}, "prompt"),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 4}, "documents"),
        ("/score", {"text_1": "a", "text_2": ["a"] * 4}, "text_2"),
    ],
)
def test_more_inputs_than_allowed_are_refused(gem: Gem, path: str, body: Any, name: str) -> None:
    client = serve(gem, max_inputs=3)
    error = refusal(client.post(path, json=body), 400)
    assert (error["param"], "4 entries and 3 are allowed" in error["message"]) == (name, True)


def test_more_tokens_than_allowed_are_refused(gem: Gem) -> None:
    client = serve(gem, max_tokens=5)
    error = refusal(client.post(CHAT, json={**SHORT, "max_tokens": 6}), 400)
    assert (error["param"], "at most 5" in error["message"]) == ("max_tokens", True)
    found = client.post("/v1/completions", json={**ENDLESS, "max_tokens": None}).json()
    assert found["usage"]["completion_tokens"] == 5
    assert found["choices"][0]["finish_reason"] == "length"


# -- how many, how long --------------------------------------------------------------------------


def test_requests_beyond_the_queue_are_sent_away(gem: Gem) -> None:
    client = serve(gem, max_running=1, max_waiting=1)
    with client, ThreadPoolExecutor(3) as pool:
        with _HeldGeneration(gem) as held:
            first = pool.submit(client.post, CHAT, json=SHORT)
            assert held.begun.wait(30)
            second = pool.submit(client.post, CHAT, json=SHORT)
            assert wait_until(lambda: _metric(client, "gem_rag:requests_waiting") == 1)
            third = client.post(CHAT, json=SHORT)
            assert "1 requests are being answered" in refusal(third, 429)["message"]
            assert third.headers["retry-after"] == "1"
            assert client.get("/health").status_code == 200
        assert first.result().status_code == second.result().status_code == 200
        assert _metric(client, "gem_rag:requests_running") == 0


def test_requests_end_when_their_time_is_over(gem: Gem) -> None:
    client = serve(gem, timeout=1.0)
    with client:
        with _HeldGeneration(gem):
            response = client.post(CHAT, json=SHORT)
            assert "longer than 1 s" in refusal(response, 504)["message"]
        assert client.post(CHAT, json=SHORT).status_code == 200


def test_a_stream_that_takes_too_long_ends_with_the_error(gem: Gem) -> None:
    client = serve(gem, timeout=1.0)
    with _HeldGeneration(gem), client:
        response = client.post(CHAT, json={**SHORT, "stream": True})
    assert response.status_code == 200
    last = response.text.removesuffix("\n\n").split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == 504


class _HeldGeneration:
    """Nothing is generated while the block runs."""

    def __init__(self, gem: Gem) -> None:
        self._batcher = gem._engine._batcher  # type: ignore[attr-defined]
        self._go = threading.Event()
        self.begun = threading.Event()

    def __enter__(self) -> _HeldGeneration:
        run = type(self._batcher)._run_once

        def held() -> None:
            self.begun.set()
            self._go.wait(30)
            run(self._batcher)

        self._batcher._run_once = held
        return self

    def __exit__(self, *_: object) -> None:
        del self._batcher._run_once
        self._go.set()


def _metric(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


# -- logs and metrics ----------------------------------------------------------------------------


def test_requests_are_logged_without_their_texts(gem: Gem, tmp_path: Path) -> None:
    client = serve(gem, make_index(tmp_path, gem), api_keys=("secret",))
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("gem_rag.server")
    log.addHandler(handler)
    log.setLevel("INFO")
    try:
        headers = {"Authorization": "Bearer secret", "X-Request-Id": "mine-1"}
        response = client.post("/v1/rag/ask", json={"question": QUESTION}, headers=headers)
        client.post("/v1/rag/search?secret=word", json={"question": QUESTION})
    finally:
        log.removeHandler(handler)
    first, second = map(json.loads, written.getvalue().splitlines())
    assert response.headers["x-request-id"] == first["id"] == "mine-1"
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v1/rag/ask", 200)
    assert first["prompt_tokens"] > 0
    assert first["generated_tokens"] > 0
    assert second["status"] == 401
    for text in ("secret", "lists", "bracket", "word"):
        assert text not in written.getvalue()


def test_metrics_count_requests_and_tokens(gem: Gem) -> None:
    client = serve(gem)
    ok = f'gem_rag:requests_total{{route="{CHAT}",status="200"}}'
    names = (ok, "gem_rag:prompt_tokens_total", "gem_rag:generated_tokens_total")
    before = [_metric(client, name) for name in names]
    used = client.post(CHAT, json=SHORT).json()["usage"]
    after = [_metric(client, name) for name in names]
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert grown == [1, used["prompt_tokens"], used["completion_tokens"]]


# -- the page ------------------------------------------------------------------------------------


def test_the_page_runs_its_own_scripts_and_asks_its_own_server_alone(gem: Gem) -> None:
    client = serve(gem)
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'" in policy
    assert "unsafe" not in policy
    for path in ("/page/page.js", "/page/page.css"):
        assert f'"{path}"' in page.text
        found = client.get(path)
        assert found.headers["content-security-policy"] == policy
        assert "http://" not in found.text
        assert "https://" not in found.text
        assert "innerHTML" not in found.text
    assert client.get("/page/../app.py").status_code == 404
