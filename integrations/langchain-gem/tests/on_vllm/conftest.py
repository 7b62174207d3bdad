"""Tests on vLLM, which need a pytest process of their own (`pytest tests/on_vllm`)."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["VLLM_HOST_IP"] = "127.0.0.1"  # before vLLM looks it up on the network
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_CACHE_ROOT"] = str(Path(__file__).parents[2] / "build" / "vllm")

from importlib.util import find_spec

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests, and let the processes of vLLM talk over loopback only."""
    here, missing = Path(__file__).parent, find_spec("vllm") is None
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if missing:
                item.add_marker(pytest.mark.skip("vLLM is not installed"))
            item.add_marker(pytest.mark.allow_hosts(["127.0.0.1", "::1", "localhost", "0.0.0.0"]))
