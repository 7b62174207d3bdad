"""What all tests need: gem-tiny, and no network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
from collections.abc import Iterator

import pytest
from standard import scratch

import gem_rag
from gem_rag import Gem


@pytest.fixture(scope="session", autouse=True)
def gem() -> Iterator[Gem]:
    """gem-tiny, kept for the session, so that every adapter that names it finds it loaded."""
    with gem_rag.load("gem-tiny") as loaded:
        yield loaded


@pytest.fixture(scope="session", autouse=True)
def _clean_up() -> Iterator[None]:
    yield
    shutil.rmtree(scratch())
