"""Fixtures for tests that run vLLM for real; they are left out where it is not installed."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["VLLM_HOST_IP"] = "127.0.0.1"  # before vLLM asks the network for it
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["NO_PROXY"] = "127.0.0.1"
os.environ["VLLM_CACHE_ROOT"] = str(Path(__file__).parents[2] / "build" / "vllm")

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import helpers
import pytest
from served import Server, serving
from serving import make_index

import gem_rag
from gem_rag.model import Gem
from gem_rag.server.catalog import IndexFolder

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
# vLLM's attention on CPU takes heads of 32 and more.
SHAPE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 160}
SMALL = {"dtype": "float32", "kv_cache_memory_bytes": 64 << 20}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM's processes speak over loopback, and over nothing else."""
    here, missing = Path(__file__).parent, find_spec("vllm") is None
    for item in items:
        if here in item.path.parents:
            if missing:
                item.add_marker(pytest.mark.skip("vLLM is not installed (make setup-vllm)"))
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.allow_hosts(["127.0.0.1", "::1", "localhost", "0.0.0.0"]))


@pytest.fixture(scope="session")
def runnable_folder(new_folder: Any, bos_tokenizer: Any) -> Callable[..., Path]:
    """A plain language model that vLLM's CPU build can run, by architecture."""

    @cache
    def make(architecture: str) -> Path:
        return helpers.save_plain(new_folder(architecture), architecture, bos_tokenizer, **SHAPE)

    return make


@pytest.fixture(scope="session")
def served_folder(new_folder: Any, runnable_folder: Callable[..., Path]) -> Callable[..., Path]:
    """The same, GEM-trained in the `special` scope, by architecture and k."""

    @cache
    def make(architecture: str, k: int = 1) -> Path:
        base = runnable_folder(architecture)
        return helpers.save_gem(new_folder(f"{architecture}-{k}"), base, k=k)

    return make


@pytest.fixture(scope="session")
def tiny() -> Iterator[Gem]:
    """gem-tiny on vLLM, in a process of its own, compiled: what takes longest to start."""
    with gem_rag.load("gem-tiny", engine="vllm", **SMALL) as gem:
        yield gem


@pytest.fixture(scope="session")
def plain_tiny() -> Iterator[Gem]:
    """gem-tiny on the transformers engine."""
    with gem_rag.load("gem-tiny") as gem:
        yield gem


class Served(NamedTuple):
    """A server of gem-tiny and an index, and the index."""

    server: Server
    folder: IndexFolder


@pytest.fixture(scope="session")
def served(plain_tiny: Gem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests that leave it as it was: it takes most of a minute to start."""
    folder = make_index(tmp_path_factory.mktemp("indexed"), plain_tiny)
    index = f"docs={folder.folder}"
    with serving(tmp_path_factory.mktemp("server"), "--index", index) as server:
        yield Served(server, folder)


@pytest.fixture(scope="session")
def url(served: Served) -> str:
    """Where it answers."""
    return served.server.url
