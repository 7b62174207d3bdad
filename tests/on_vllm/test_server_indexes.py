"""`gem-rag serve --engine vllm --index`: indexes in vLLM's app, and clients of other makers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from client_checks import CHECKS, INDEXED, Check
from conftest import Served
from fastapi.testclient import TestClient
from served import wait_until
from serving import ASKED, DEADLINE, ENDLESS, MODEL, QUESTION, make_app, metric, refusal

from gem_rag.model import Gem

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(scope="module")
def gem(plain_tiny: Gem) -> Gem:
    """The model that is served, in this process."""
    return plain_tiny


@pytest.fixture(scope="module")
def other(served: Served, gem: Gem) -> Iterator[TestClient]:
    """The same index on the transformers engine."""
    with TestClient(make_app(gem, served.folder), base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_clients(check: Check, url: str, gem: Gem) -> None:
    check(url, gem)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rag/ask", {"question": QUESTION}),
        ("/v1/rag/ask", {"question": QUESTION, "style": "free", "max_tokens": 12}),
        ("/v1/rag/search", {"question": QUESTION, "k": 2}),
        ("/v1/rerank", {"query": QUESTION, "documents": ["Rain.", "Lists have brackets."]}),
        ("/score", {"text_1": QUESTION, "text_2": ["Rain.", "Lists have brackets."]}),
        ("/v1/chat/completions", {"model": INDEXED, "messages": ASKED}),
        ("/v1/completions", {"model": MODEL, "prompt": "A list is", "temperature": 0}),
        ("/tokenize", {"model": MODEL, "prompt": "A list is"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_both_engines_give_the_same(url: str, other: TestClient, path: str, body: Any) -> None:
    found = httpx.post(f"{url}{path}", json=body, timeout=DEADLINE)
    assert found.status_code == 200, found.text
    same(shared(found.json()), shared(other.post(path, json=body).json()))


def shared(answer: Any) -> Any:
    """An answer without what differs by time, by machine, or in vLLM's own routes."""
    if isinstance(answer, list):
        return [shared(entry) for entry in answer]
    if not isinstance(answer, dict):
        return answer
    left_out = {"id", "created", "timings", "url", "prompt_tokens_details"}
    return {key: shared(value) for key, value in answer.items() if key not in left_out}


def same(found: Any, wanted: Any) -> None:
    """Whether all of `wanted` is in `found`; vLLM's own routes say more."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            same(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    else:
        assert found == wanted


def test_the_engines_own_counters_show_that_work_stops(url: str) -> None:
    running = "vllm:num_requests_running"
    for asked in (
        ENDLESS | {"max_tokens": 900, "stream": True},
        {"model": INDEXED, "messages": ASKED, "max_tokens": 700, "rag": {"style": "free"},
         "temperature": 1.9, "stream": True},
    ):  # fmt: skip
        path = "completions" if "prompt" in asked else "chat/completions"
        with httpx.stream("POST", f"{url}/v1/{path}", json=asked) as stream:
            lines = stream.iter_lines()
            for _ in range(3):
                next(lines)
        assert wait_until(lambda: metric(url, running) == 0, DEADLINE)


def test_documents_are_added_and_found(url: str) -> None:
    files = [("file", ("rain.md", b"# Rain\n\nRain falls from clouds.\n"))]
    report = httpx.post(f"{url}/v1/rag/documents", files=files, timeout=DEADLINE).json()
    [source] = report["added"]
    asked = {"question": "Where does rain fall from?", "k": 1}
    hits = httpx.post(f"{url}/v1/rag/search", json=asked, timeout=DEADLINE).json()["data"]
    assert [hit["source"] for hit in hits] == [source]
    gone = httpx.delete(f"{url}/v1/rag/documents", params={"source": source}, timeout=DEADLINE)
    assert gone.json()["removed"] == [source]


def test_the_page_is_there(url: str) -> None:
    assert "gem-rag" in httpx.get(f"{url}/").text
    assert httpx.get(f"{url}/page/page.js").status_code == 200


def test_strangers_are_kept_out(url: str) -> None:
    for path in ("/v1/models", "/health", "/"):
        refusal(httpx.get(f"{url}{path}", headers={"Host": "evil.example"}), 403)
    answer = httpx.options(
        f"{url}/v1/models",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert "access-control-allow-origin" not in answer.headers
