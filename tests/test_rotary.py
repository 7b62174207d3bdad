"""Rotary embeddings that depend on lengths: no row depends on another, nor on a thread."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core.encoder import GemEncoder, max_text_tokens
from gem_rag.core.rotary import RowwiseRotary, make_rotary_rowwise

ORIGINAL = 64
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 4.0, 8.0]}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL, **FACTORS,
}  # fmt: skip
MSCALE = {"short_mscale": 1.0, "long_mscale": 1.3}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
MODELS: dict[str, dict[str, Any]] = {
    "phi3": {"rope_parameters": LONG, "original_max_position_embeddings": ORIGINAL},
    "phimoe": {"rope_parameters": {**LONG, **MSCALE}, "num_local_experts": 4},
    "llama": {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL},
}


def build(architecture: str) -> Any:
    settings = {"max_position_embeddings": 4 * ORIGINAL, **MODELS[architecture]}
    return helpers.build_model(architecture, **settings)


def rotary_of(model: Any) -> Any:
    return model.base_model.rotary_emb


def positions(*lengths: int) -> torch.Tensor:
    """Rows that end at these lengths."""
    return torch.stack([torch.arange(length - 8, length) for length in lengths])


@pytest.mark.parametrize("architecture", MODELS)
def test_each_row_gets_what_it_gets_alone(architecture: str) -> None:
    model = build(architecture)
    x, lengths = torch.zeros(5, 8, 32), (10, 100, ORIGINAL, ORIGINAL + 1, 200)
    alone = [copy.deepcopy(rotary_of(model))(x[:1], positions(length)) for length in lengths]
    plain = rotary_of(model)(x, positions(*lengths))
    assert not torch.equal(plain[0][:1], alone[0][0])  # what this is for
    GemEncoder(model, 1)
    for _ in range(2):
        together = rotary_of(model)(x, positions(*lengths))
        for row, parts in enumerate(alone):
            for part, whole in zip(parts, together, strict=True):
                assert torch.equal(part[0], whole[row])


def test_other_models_are_left_as_they_are() -> None:
    for architecture in ("llama", "gemma3_text", "gpt_neox", "phi"):
        model = helpers.build_model(architecture)
        make_rotary_rowwise(model, ORIGINAL)
        assert not any(isinstance(m.forward, RowwiseRotary) for m in model.modules())


def test_a_copy_has_frequencies_of_its_own() -> None:
    model = build("phi3")
    make_rotary_rowwise(model, ORIGINAL)
    first, second = rotary_of(model), rotary_of(copy.deepcopy(model))
    assert second.forward._forward.__self__ is second
    assert first.forward._forward.__self__ is first


@pytest.mark.parametrize("architecture", MODELS)
def test_texts_are_as_long_as_frequencies_stay(architecture: str) -> None:
    assert max_text_tokens(build(architecture).config, 2) == ORIGINAL - 2


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    build(request.param).save_pretrained(tmp_path / "base")
    helpers.build_tokenizer().save_pretrained(tmp_path / "base")
    return helpers.save_gem(tmp_path / "gem", tmp_path / "base")


def test_embedding_and_generating_at_once_disturb_neither(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    longest = plain.config.max_position_embeddings // 2
    prompts = [helpers.random_ids(length, generator) for length in (20, longest, 30, longest - 9)]
    texts = [helpers.random_ids(length, generator) for length in (5, 40, 60)]
    settings = {"max_new_tokens": 8, "do_sample": False}
    ended = (plain.generate(torch.tensor([p]), **settings)[0, len(p) :] for p in prompts)
    wanted = [tokens[tokens != helpers.EOS].tolist() for tokens in ended]
    with gem_rag.load(folder, dtype="float32") as gem:
        quiet = gem.embed_tokens(texts)
        vectors: list[np.ndarray] = []
        done = threading.Event()

        def embed() -> None:
            while not done.is_set():
                vectors.append(gem.embed_tokens(texts))

        thread = threading.Thread(target=embed)
        thread.start()
        try:
            found = [gem.generate(prompts, max_tokens=8) for _ in range(5)]
        finally:
            done.set()
            thread.join()
    assert len(vectors) > 1
    for each in vectors:
        assert helpers.close_to(each, quiet)
    for generations in found:
        assert [list(g.tokens) for g in generations] == wanted
