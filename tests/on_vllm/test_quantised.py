"""Quantised weights embed too, since vLLM's own layers run; a quantised cache changes no vector."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import helpers
import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file, save_file

import gem_rag

HALF = {**SMALL, "dtype": "bfloat16"}  # what vLLM's int8 kernels on CPU take
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
QUANTISATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**INT8, "strategy": "token", "dynamic": True},
        }
    },
}

needs_avx512 = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    reason="without AVX-512 vLLM has no fp8 caches on a CPU, and coarser int8 layers",
)


def quantise(folder: Path) -> None:
    """Rewrite a model's linear layers below the head as int8 with a scale for each output."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in list(weights.items()):
        if name.endswith("_proj.weight"):
            scale = weight.abs().amax(dim=1, keepdim=True) / 127
            weights[name] = (weight / scale).round().to(torch.int8)
            weights[f"{name}_scale"] = scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    helpers.edit_json(folder / "config.json", quantization_config=QUANTISATION)


@needs_avx512
def test_int8_weights_and_activations_give_nearly_the_same_vectors(
    served_folder: Callable[..., Path], tmp_path: Path
) -> None:
    original = served_folder("llama", 4)
    copied = Path(shutil.copytree(original, tmp_path / "int8"))
    quantise(copied)
    texts = ["Indexes hold vectors.", "The quick brown fox", "x" * 50]
    with (
        gem_rag.load(copied, engine="vllm", in_process=True, **HALF) as gem,
        gem_rag.load(original) as reference,
    ):
        assert gem.generate(["Indexes"], max_tokens=2)
        cosines = (gem.embed_documents(texts) * reference.embed_documents(texts)).sum(axis=1)
    assert cosines.min() > 0.98
    assert cosines.max() < 0.999999  # it is not the unquantised model that ran


@needs_avx512
def test_texts_do_not_go_through_a_quantised_cache(served_folder: Callable[..., Path]) -> None:
    folder = served_folder("llama", 4)
    texts = ["Indexes hold vectors.", "The quick brown fox", "x" * 50]
    with (
        gem_rag.load(folder, engine="vllm", in_process=True, kv_cache_dtype="fp8", **SMALL) as gem,
        gem_rag.load(folder) as reference,
    ):
        assert gem.generate(["Indexes"], max_tokens=2)
        cosines = (gem.embed_documents(texts) * reference.embed_documents(texts)).sum(axis=1)
    assert cosines.min() > 0.9999
