"""Shared fixtures: everything is tiny, random, seeded and built once per session."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tempfile

# Before datasets is imported, here and in child processes: tests leave nothing in the home folder.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="gem-rag-tests-")

import atexit
import gc
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

import gem_rag
from gem_rag.model import Gem

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
torch.set_num_threads(1)  # two test runs go side by side
# The same examples every time, however long they take.
settings.register_profile("gem", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gem"))


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collection: every closed model starts one."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Collect it after all, at the end: libraries complain about what is left."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts nothing around a text."""
    return helpers.build_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts <s> before every text."""
    return helpers.build_tokenizer(bos=True)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], Any]:
    """A random model by architecture; shared, so do not change it (no adapters)."""
    return cache(helpers.build_model)


@pytest.fixture(scope="session")
def reference_model(tiny_model: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same weights as `tiny_model`, run by transformers' eager attention."""
    return cache(lambda architecture: helpers.reference_copy(tiny_model(architecture)))


@pytest.fixture(scope="session")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A path that does not exist yet, kept for the session."""
    numbers = count()
    root = tmp_path_factory.mktemp("models")
    return lambda name: root / f"{name}-{next(numbers)}"


@pytest.fixture(scope="session")
def plain_folder(new_folder: Any, bos_tokenizer: Any) -> Callable[[str], Path]:
    """A plain language model's folder by architecture; shared, so copy it to change it.

    "phi" generates printable ASCII without end; all put <s> before every text.
    """
    return cache(lambda name: helpers.save_plain(new_folder(name), name, bos_tokenizer))


@pytest.fixture(scope="session")
def gem_folder(new_folder: Any, plain_folder: Any) -> Callable[..., Path]:
    """A `special`-scope checkpoint by architecture and `GemConfig` settings; not shared."""

    def make(architecture: str = "llama", **settings: Any) -> Path:
        name = f"gem-{architecture}"
        return helpers.save_gem(new_folder(name), plain_folder(architecture), **settings)

    return make


@pytest.fixture(scope="session")
def trained_folder(gem_folder: Any) -> Path:
    """A GEM-trained Llama with k = 2 and prompts; shared, so copy it to change it."""
    prompts = {"query": "query: ", "document": "passage: "}
    return gem_folder("llama", k=2, prompts=prompts)


@pytest.fixture(scope="session")
def gem(trained_folder: Path) -> Iterator[Gem]:
    """`trained_folder`, loaded."""
    with gem_rag.load(trained_folder) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def talker(gem_folder: Any) -> Iterator[Gem]:
    """A GEM-trained Phi that generates printable ASCII and never ends by itself."""
    with gem_rag.load(gem_folder("phi")) as loaded:
        yield loaded


@pytest.fixture
def folder(trained_folder: Path, tmp_path: Path) -> Path:
    """A GEM checkpoint that nobody else has loaded."""
    return Path(shutil.copytree(trained_folder, tmp_path / "model"))
