"""The server on a port of loopback: clients of other makers, and how it begins and ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from client_checks import CHECKS, Check, settles, use_tools
from fastapi.testclient import TestClient
from serving import (
    ALIAS,
    ASKED,
    DEADLINE,
    ENDLESS,
    MODEL,
    listening,
    make_app,
    make_index,
    metric,
    refusal,
    wait_until,
)

import gem_rag
from gem_rag.engines.continuous_batching import ContinuousBatcher
from gem_rag.engines.transformers_engine import TransformersEngine
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem
from gem_rag.rag.answer import Answer
from gem_rag.rag.index import Index
from gem_rag.server import run
from gem_rag.server.catalog import Catalog, IndexFolder

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
SHORT = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 4}
CHAT = "/v1/chat/completions"
SAID = {**ENDLESS, "max_tokens": 8}


@pytest.fixture(scope="module")
def gem() -> Iterator[Gem]:
    with gem_rag.load(MODEL) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def folder(gem: Gem, tmp_path_factory: pytest.TempPathFactory) -> IndexFolder:
    return make_index(tmp_path_factory.mktemp("served"), gem)


@pytest.fixture(scope="module")
def url(gem: Gem, folder: IndexFolder) -> Iterator[str]:
    with listening(make_app(gem, folder)) as (url, _):
        yield url


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_clients(check: Check, url: str, gem: Gem) -> None:
    check(url, gem)


def test_an_agent_that_leaves_takes_its_work_with_it(
    url: str, gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool's call over MCP that its client waits for no longer."""
    from mcp import Client

    ended: list[str] = []

    def ask(index: Index, question: str, k: int) -> Answer:
        try:
            [generation] = gem.generate([ENDLESS["prompt"]], max_tokens=900)
            ended.append(generation.finish_reason)
        except GemError as error:
            ended.append(str(error))
            raise
        return Answer(question, [], [])

    monkeypatch.setattr(Index, "ask", ask)

    async def leave() -> None:
        async with Client(f"{url}/mcp") as client:
            call = asyncio.create_task(client.call_tool("ask", {"question": "x"}))
            assert await settles(url, "gem_rag:texts_generating", 1)
            call.cancel()
            assert await asyncio.to_thread(wait_until, lambda: bool(ended))
            assert ended == ["the call was cancelled"]

    asyncio.run(asyncio.wait_for(leave(), 2 * DEADLINE))


@pytest.mark.slow
def test_the_tools_on_stdin_and_stdout(folder: IndexFolder) -> None:
    from mcp import StdioServerParameters

    arguments = ["-m", "gem_rag", "mcp", "--index", f"docs={folder.folder}"]
    server = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))
    asyncio.run(asyncio.wait_for(use_tools(server), 2 * DEADLINE))


def test_nothing_is_generated_for_a_reader_that_left(
    url: str, gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    run_once = ContinuousBatcher._run_once

    def counted(self: ContinuousBatcher) -> None:
        nonlocal steps
        steps += 1
        run_once(self)

    monkeypatch.setattr(ContinuousBatcher, "_run_once", counted)
    endless = {**ENDLESS, "max_tokens": 900, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=endless) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
    assert wait_until(lambda: gem.num_generating == 0)
    assert 0 < steps < 450
    left = 'gem_rag:requests_total{route="/v1/completions",status="499"}'
    before, steps = metric(url, left), 0
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{url}/v1/completions", json={**endless, "stream": False},
            timeout=httpx.Timeout(DEADLINE, read=0.2),
        )  # fmt: skip
    assert wait_until(lambda: metric(url, left) == before + 1)
    assert steps < 900


# -- the server ends -----------------------------------------------------------------------------


def test_a_shutdown_lets_requests_finish(gem: Gem) -> None:
    with ThreadPoolExecutor(1) as pool, listening(make_app(gem)) as (url, server):
        answer = pool.submit(
            httpx.post, f"{url}/v1/completions", json={**ENDLESS, "max_tokens": 40}
        )
        assert wait_until(lambda: gem.num_generating == 1)
        server.should_exit = True
        assert answer.result(DEADLINE).json()["usage"]["completion_tokens"] == 40
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health")


def test_a_shutdown_aborts_what_takes_too_long(gem: Gem) -> None:
    with ThreadPoolExecutor(1) as pool, listening(make_app(gem)) as (url, server):
        server.config.timeout_graceful_shutdown = 0
        answer = pool.submit(httpx.post, f"{url}/v1/completions", json=ENDLESS, timeout=DEADLINE)
        assert wait_until(lambda: gem.num_generating == 1)
        server.should_exit = True
        error = answer.exception(DEADLINE)
        assert error is not None or answer.result().status_code >= 500
        assert wait_until(lambda: gem.num_generating == 0)


# -- the engine dies -----------------------------------------------------------------------------


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the engine fail as a lost device does: whatever is asked of it raises."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered\nand more")

    def kill() -> None:
        monkeypatch.setattr(TransformersEngine, "stream", fail)
        monkeypatch.setattr(TransformersEngine, "embed_batches", fail)

    return kill


def test_clients_of_a_dead_engine_hear_of_it_at_once(gem: Gem, kill: Callable[[], None]) -> None:
    client = TestClient(make_app(gem), base_url="http://127.0.0.1")
    assert client.get("/health").status_code == 200
    kill()
    said = "the engine has died (RuntimeError: CUDA error: device-side assert triggered)"
    assert said in refusal(client.post(CHAT, json=SHORT), 503)["message"]
    assert said in client.get("/health").json()["reason"]
    assert client.get("/health").status_code == 503
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/tokenize", {"prompt": "a"})):
        assert said in refusal(client.post(path, json=body), 503)["message"]


def test_an_error_in_mid_stream_is_its_last_event(
    gem: Gem, kill: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(make_app(gem), base_url="http://127.0.0.1")
    kill()

    def stream(*_: Any) -> Iterator[str]:
        yield "Lists"
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(TransformersEngine, "stream", stream)
    text = client.post(CHAT, json={**SHORT, "stream": True}).text
    assert '"content":"Lists"' in text
    assert "the engine has died" in text.split("\n\n")[-3]
    assert text.endswith("data: [DONE]\n\n")


def test_an_error_that_leaves_the_engine_alive_is_one_requests(
    gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(make_app(gem), base_url="http://127.0.0.1")
    monkeypatch.setattr(TransformersEngine, "stream", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in refusal(client.post(CHAT, json=SHORT), 500)["message"]
    monkeypatch.undo()
    assert client.get("/health").status_code == 200
    assert client.post(CHAT, json=SHORT).status_code == 200


@pytest.mark.parametrize("on_failure", ["exit", "restart"])
def test_a_server_whose_engine_died_ends_or_begins_anew(
    gem: Gem, kill: Callable[[], None], monkeypatch: pytest.MonkeyPatch, on_failure: Any
) -> None:
    replaced: list[Any] = []
    monkeypatch.setattr(run, "_SOON", 0.0)
    monkeypatch.setattr(os, "execv", lambda *arguments: replaced.append(arguments))
    monkeypatch.setattr(run, "configure_logging", lambda level: None)
    port = free_port()
    ended: list[BaseException] = []

    def serve() -> None:
        try:
            run.serve(lambda: Catalog.open(gem), "127.0.0.1", port, on_failure=on_failure)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    assert wait_until(lambda: is_healthy(url))
    kill()
    refusal(httpx.post(f"{url}{CHAT}", json=SHORT), 503)
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert isinstance(ended[0], GemError)
    assert [arguments[0] for arguments in replaced] == [sys.executable] * (on_failure == "restart")


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# -- the server begins ---------------------------------------------------------------------------


def test_a_port_in_use_is_found_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port} .Address already in use.: choose"):
            run.serve(lambda: pytest.fail("loaded"), "127.0.0.1", port)


def test_answers_of_many_at_once_are_those_of_each_alone(url: str, gem: Gem) -> None:
    asked = [
        *(("/v1/completions", {**SAID, "prompt": f"Step {n}"}) for n in range(6)),
        *(("/v1/rag/search", {"question": f"lists {n}", "k": 2}) for n in range(6)),
        *(("/v1/embeddings", {"input": [f"text {n}"]}) for n in range(6)),
    ]  # fmt: skip

    def answer(request: tuple[str, Any]) -> Any:
        found = httpx.post(f"{url}{request[0]}", json=request[1], timeout=DEADLINE).json()
        return found.get("choices") or found["data"]

    alone = [answer(request) for request in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(answer, asked))
    for found, wanted in zip(together, alone, strict=True):
        if "embedding" in wanted[0]:
            assert found[0]["embedding"] == pytest.approx(wanted[0]["embedding"], abs=1e-5)
        else:
            assert found == wanted
    assert wait_until(lambda: metric(url, "gem_rag:requests_running") == 0)


def test_the_index_is_read_while_it_is_written(url: str, tmp_path: Path) -> None:
    documents = [{"source": f"made {n}", "text": f"Number {n} of many texts."} for n in range(200)]
    with ThreadPoolExecutor(1) as pool:
        added = pool.submit(
            httpx.post, f"{url}/v1/rag/documents", json={"documents": documents}, timeout=DEADLINE
        )
        while not added.done():
            found = httpx.post(f"{url}/v1/rag/search", json={"question": "lists"})
            assert found.status_code == 200
        assert len(added.result().json()["added"]) == 200


@pytest.mark.slow
def test_the_command_serves_and_ends_in_order(folder: IndexFolder, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    command = [
        *(sys.executable, "-m", "gem_rag", "serve", "--engine", "transformers"),
        *("--index", f"docs={folder.folder}", "--port", str(port)),
        *("--served-model-name", MODEL, ALIAS),
    ]
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": "Bearer secret"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stderr=output, env={**os.environ, "GEM_RAG_API_KEY": "secret other"}
        )
    try:
        assert wait_until(lambda: process.poll() is not None or is_healthy(url), 2 * DEADLINE)
        refusal(httpx.get(f"{url}/v1/models"), 401)
        refusal(httpx.get(f"{url}/v1/models", headers={**headers, "Host": "evil.example"}), 403)
        models = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
        assert [model["id"] for model in models] == [MODEL, ALIAS, "rag/docs"]
        second = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=2 * DEADLINE
        )
        assert second.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
        with ThreadPoolExecutor(1) as pool:
            asked = {**ENDLESS, "max_tokens": 200}
            answer = pool.submit(
                httpx.post, f"{url}/v1/completions", json=asked, headers=headers, timeout=DEADLINE
            )
            running = "gem_rag:requests_running"
            assert wait_until(lambda: metric(url, running, headers) == 1)
            process.send_signal(signal.SIGTERM)
            assert answer.result().json()["usage"]["completion_tokens"] == 200
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    statuses = [line["status"] for line in lines if line["message"] == "request"]
    assert {401, 403, 200} <= set(statuses)
    assert "secret" not in log.read_text()
