"""Fixtures of all tests: gem-tiny, loaded once, and no network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
from collections.abc import Iterator

import pytest
from standard import scratch_folder

import gem_rag
from gem_rag import Gem


@pytest.fixture(scope="session", autouse=True)
def gem() -> Iterator[Gem]:
    """gem-tiny, kept for the session, so that adapters share it instead of loading it again."""
    with gem_rag.load("gem-tiny") as loaded:
        yield loaded


@pytest.fixture
def passes(gem: Gem) -> Iterator[list[None]]:
    """Grows by one with each forward pass of the model: one of a batch is a token of each text."""
    counted: list[None] = []
    hook = gem._engine._model.register_forward_hook(lambda *_: counted.append(None))
    yield counted
    hook.remove()


@pytest.fixture(scope="session", autouse=True)
def _clean_up() -> Iterator[None]:
    yield
    shutil.rmtree(scratch_folder())
