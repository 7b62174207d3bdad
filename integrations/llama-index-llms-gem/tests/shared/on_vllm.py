"""Fixtures of tests on vLLM (a pytest plugin), which are skipped if it is not installed."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["VLLM_HOST_IP"] = "127.0.0.1"  # before vLLM looks it up on the network
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_CACHE_ROOT"] = str(Path(__file__).resolve().parents[4] / "build" / "vllm")

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

import gem_rag
from gem_rag import Gem

SMALL = {"dtype": "float32", "kv_cache_memory_bytes": 64 << 20}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests, and let the processes of vLLM talk over loopback only."""
    for item in items:
        item.add_marker(pytest.mark.slow)
        if find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip("vLLM is not installed (make setup-vllm)"))
        item.add_marker(pytest.mark.allow_hosts(["127.0.0.1", "::1", "localhost", "0.0.0.0"]))


@pytest.fixture(scope="session")
def vllm_gem() -> Iterator[Gem]:
    """The bundled model on vLLM."""
    with gem_rag.load("gem-tiny", engine="vllm", **SMALL) as loaded:
        yield loaded
