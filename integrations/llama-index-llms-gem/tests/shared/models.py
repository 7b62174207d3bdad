"""Fixtures with the models of the tests of both LlamaIndex distributions (a pytest plugin)."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest
import torch
from llama_index.core import Settings

import gem_rag
from gem_rag import Gem

torch.set_num_threads(1)  # two test runs go side by side


@pytest.fixture(scope="session")
def gem() -> Iterator[Gem]:
    """The bundled model."""
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
def _set_tokenizer(gem: Gem) -> None:
    Settings.tokenizer = gem.tokenize


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Phi with a chat template and prompts; it generates printable ASCII without end."""
    return _save_talkative_model(tmp_path_factory.mktemp("models"), helpers.CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def bare_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a chat template."""
    return _save_talkative_model(tmp_path_factory.mktemp("models"), None)


def _save_talkative_model(folder: Path, template: str | None) -> Path:
    tokenizer = helpers.build_tokenizer(bos=True, chat_template=template)
    base = helpers.save_plain(folder / "base", "phi", tokenizer, max_position_embeddings=1024)
    prompts = {"query": "query: ", "document": "passage: "}
    return helpers.save_gem(folder / "gem", base, prompts=prompts)
