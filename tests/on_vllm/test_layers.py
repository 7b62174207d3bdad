"""Embeddings read before the last layer are the transformers engine's; what vLLM writes stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import helpers
import pytest
from conftest import SHAPE, SMALL
from test_vectors import check_same_vectors, random_texts

import gem_rag
from gem_rag.errors import InputError

pytest.importorskip("vllm")

from gem_rag.engines.vllm.vllm_encoder import VllmEncoder

LAYERS, KEPT = 4, 2


@pytest.fixture(scope="module")
def early_folder(new_folder: Any, bos_tokenizer: Any) -> Callable[..., Path]:
    """A checkpoint of four layers by architecture, and after which of them embeddings are read;
    its adapters are on all layers."""

    @cache
    def base(architecture: str) -> Path:
        return helpers.save_plain(
            new_folder(architecture),
            architecture,
            bos_tokenizer,
            **{**SHAPE, "num_hidden_layers": LAYERS},
        )

    @cache
    def make(architecture: str, layers: int | None) -> Path:
        return helpers.save_gem(
            new_folder(f"{architecture}-{layers}"), base(architecture), k=2, layers=layers
        )

    return make


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> list[VllmEncoder]:
    """Those made in this process."""
    made: list[VllmEncoder] = []
    plain = VllmEncoder._try_vllm_kernels

    def remember(self: VllmEncoder) -> None:
        made.append(self)
        plain(self)

    monkeypatch.setattr(VllmEncoder, "_try_vllm_kernels", remember)
    return made


@pytest.mark.parametrize(
    ("architecture", "eager"),
    [("llama", True), ("llama", False), ("qwen3", True), ("gemma", True), ("mistral", False)],
)
def test_vectors_are_those_of_the_transformers_engine(
    architecture: str, eager: bool, early_folder: Callable[..., Path], encoders: list[VllmEncoder]
) -> None:
    folder = early_folder(architecture, KEPT)
    how = {"engine": "vllm", "in_process": True, "enforce_eager": eager, **SMALL}
    with gem_rag.load(folder, **how) as gem, gem_rag.load(folder) as reference:
        prompts = random_texts(reference, 6)
        before = gem.generate(prompts, max_tokens=8)
        check_same_vectors(gem, reference)
        assert gem.generate(prompts, max_tokens=8) == before
    with gem_rag.load(early_folder(architecture, None), **how) as whole:
        assert whole.generate(prompts, max_tokens=8) == before
    early, all_layers = encoders
    assert (len(early._attention_layers), len(all_layers._attention_layers)) == (KEPT, LAYERS)
    assert early.bytes_per_token() < all_layers.bytes_per_token()
    assert early._prefill is not None
    assert not early._compiled


def test_a_layer_that_the_model_does_not_have_is_refused(
    early_folder: Callable[..., Path],
) -> None:
    with pytest.raises(InputError, match="layers is 5, and the model has 4 layers"):
        gem_rag.load(
            early_folder("llama", LAYERS + 1),
            engine="vllm",
            in_process=True,
            enforce_eager=True,
            **SMALL,
        )
