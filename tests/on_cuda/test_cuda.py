"""A GPU's kernels, graphs and compiler against the written-out rule in float32 on the CPU."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from flash_stand_in import _flash_forward
from helpers import ARCHITECTURES, build_model, close_to, random_ids, randomise, vectors_of
from torch import Tensor
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core import varlen
from gem_rag.core.layout import Layout, Row
from gem_rag.engines import batch_embedder
from gem_rag.training import scopes
from gem_rag.training.recipe import Adapter

LENGTHS = (40, 33, 40, 7, 1, 25, 40, 39, 128, 3)
HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def rows_of(*lengths: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    return [Row.whole(random_ids(length, generator)) for length in lengths]


def least_cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float((found * wanted).sum(axis=1).min())


@pytest.fixture
def _no_pass_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_embedder, "_ONE_PASS_TOKENS", 0)


# -- the kernel --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_means_what_stands_in_for_it(
    dtype: torch.dtype, head_dim: int, causal: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 1, 70, 33]
    queries = lengths if causal else [1] * 4

    def random(rows: int, heads: int) -> Tensor:
        return torch.randn(rows, heads, head_dim, generator=generator).to(dtype)

    q, k, v = random(sum(queries), 6), random(sum(lengths), 2), random(sum(lengths), 2)
    starts = [torch.tensor([0, *np.cumsum(part)], dtype=torch.int32) for part in (queries, lengths)]
    wanted, lse = _flash_forward(
        q.float(), k.float(), v.float(), *starts, max(queries), max(lengths), 0.3, causal
    )
    bounds = varlen.Bounds(starts[0].cuda(), starts[1].cuda(), max(queries), max(lengths))
    found, found_lse = varlen.flash_forward(q.cuda(), k.cuda(), v.cuda(), bounds, 0.3, causal)
    assert torch.allclose(found.cpu().float(), wanted, atol=2e-2, rtol=2e-2)
    assert torch.allclose(found_lse.cpu(), lse, atol=2e-2, rtol=2e-2)


# -- vectors -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_pass_is_short")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vectors(architecture: str, dtype: str, gem_folder: Any) -> None:
    folder, rows = gem_folder(architecture, k=2), rows_of(*LENGTHS)
    with gem_rag.load(folder, device="cpu", attention="dense") as plain:
        wanted = vectors_of(plain, *rows)
    with gem_rag.load(folder, dtype=dtype) as gem:
        assert gem._engine.encoder.device.type == "cuda"
        assert gem._engine.encoder.packs_texts == (dtype == "bfloat16")
        found = gem._engine.embed(rows)
        single = vectors_of(gem, *rows)
    if dtype == "float32":
        assert close_to(found, wanted)
        assert close_to(single, wanted)
    else:
        assert min(least_cosine(found, wanted), least_cosine(single, wanted)) > 0.995


@pytest.mark.usefixtures("_no_pass_is_short")
def test_observers_and_texts_without_special_tokens(trained_folder: Any) -> None:
    rows = [*rows_of(20, 9), Row([*range(5, 40)], ((0, 9), (4, 35), (0, 35))), *rows_of(64)]
    with (
        gem_rag.load(trained_folder, device="cpu") as plain,
        gem_rag.load(trained_folder, dtype="bfloat16") as gem,
    ):
        assert least_cosine(gem._engine.embed(rows), vectors_of(plain, *rows)) > 0.995


@pytest.mark.usefixtures("_no_pass_is_short")
def test_compiled_texts(gem_folder: Any) -> None:
    folder, rows = gem_folder("llama"), rows_of(*LENGTHS)
    with gem_rag.load(folder, dtype="bfloat16", compile=False) as plain:
        wanted = plain._engine.embed(rows)
    with gem_rag.load(folder, dtype="bfloat16", compile=True) as gem:
        assert least_cosine(gem._engine.embed(rows), wanted) > 0.999
        found = gem._engine.embed(rows_of(*LENGTHS, 77, 200))
        assert least_cosine(found[: len(rows)], wanted) > 0.999


# -- one query ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_queries(trained_folder: Any, dtype: str) -> None:
    rows = rows_of(*range(1, 70, 3), 100, 200, 240, 5)
    with gem_rag.load(trained_folder, dtype=dtype, compile=False) as plain:
        wanted = vectors_of(plain, *rows)
    with gem_rag.load(trained_folder, dtype=dtype) as gem, warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            found = vectors_of(gem, *rows)
            if dtype == "float32":
                assert close_to(found, wanted)
            assert least_cosine(found, wanted) > 0.999
        assert len(gem._engine._embedder._graphs._recorded) == 5


def test_queries_are_recorded_while_texts_are_generated(gem_folder: Any) -> None:
    folder, rows = gem_folder("phi"), rows_of(9, 20, 40, 100, 200)
    with gem_rag.load(folder, dtype="float32", compile=False) as plain:
        wanted = vectors_of(plain, *rows)
        text = plain.generate(["a fox"], max_tokens=120)[0].text
    with gem_rag.load(folder, dtype="float32") as gem:
        texts: list[str] = []

        def generate() -> None:
            texts.append(gem.generate(["a fox"], max_tokens=120)[0].text)

        threads = [threading.Thread(target=generate) for _ in range(3)]
        for thread in threads:
            thread.start()
        found = [vectors_of(gem, *rows) for _ in range(3)]
        for thread in threads:
            thread.join()
        assert texts == [text] * 3
        assert all(close_to(part, wanted) for part in found)
        assert gem._engine._embedder._graphs is not None


# -- generation, memory, training --------------------------------------------------------------


def test_generation_is_the_plain_models(gem_folder: Any, plain_folder: Any) -> None:
    ids = torch.tensor([rows_of(30)[0].text]).cuda()
    plain = AutoModelForCausalLM.from_pretrained(plain_folder("llama"), dtype=torch.bfloat16)
    with torch.inference_mode(), gem_rag.load(gem_folder("llama"), dtype="bfloat16") as gem:
        gem._engine.embed(rows_of(*LENGTHS))
        plain.set_attn_implementation("sdpa")
        with gem.language_model() as ours:
            assert torch.equal(ours(ids).logits, plain.cuda()(ids).logits)


def test_a_batch_too_large_is_halved(trained_folder: Any) -> None:
    rows = rows_of(*[200] * 3000)
    with gem_rag.load(trained_folder, dtype="bfloat16") as gem:
        wanted = gem._engine.embed(rows[:50])
        used = torch.cuda.memory_reserved() + (192 << 20)
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(used / total)
        try:
            gem._engine._embedder._batch_tokens = 10**7
            with pytest.warns(UserWarning, match="does not fit into the memory of the device"):
                found = gem._engine.embed(rows)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert least_cosine(found[:50], wanted) > 0.999


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "qwen3"])
def test_gradients(architecture: str) -> None:
    rows = [Row(list(range(5, 30)), ((0, 9), (3, 25))), *rows_of(*LENGTHS)]

    def gradients(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
        encoder = scopes.prepare_special(
            build_model(architecture), 2, adapter=Adapter(rank=4)
        ).encoder
        randomise(encoder.special)
        encoder.model.to(dtype)  # once all weights are drawn: those drawn in bfloat16 are others
        encoder.to(device)
        layouts = [Layout.build(rows, 2)]
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            vectors = encoder.embed_in_halves(layouts, frozen_texts=True)
        weights = torch.linspace(-1, 1, encoder.dim, device=device)
        (vectors.float() @ weights).square().sum().backward()
        named = encoder.named_parameters()
        return {name: p.grad.cpu().float() for name, p in named if p.grad is not None}

    wanted = gradients("cpu", torch.float32)
    for found, least in (
        (gradients("cuda", torch.float32), 0.9999),
        (gradients("cuda", torch.bfloat16), 0.95),
    ):
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            cosine = torch.cosine_similarity(gradient.flatten(), wanted[name].flatten(), dim=0)
            assert cosine > least, (name, float(cosine))
