"""What vLLM cannot run, or GEM cannot embed with, is refused in one sentence that names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import gem_rag
from gem_rag.core.layout import Row
from gem_rag.engines.vllm.rpc import WorkerCapabilities
from gem_rag.errors import GemError, InputError

IN_PROCESS = {"in_process": True, "enforce_eager": True, **SMALL}
TINY = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 32, "first_k_dense_replace": 2}
STATE = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}


@pytest.fixture
def saved(tmp_path: Path, bos_tokenizer: Any) -> Callable[..., Path]:
    """A folder of a tiny model of any architecture, with random weights or none to speak of."""

    def make(
        model_type: str, architectures: list[str], weights: bool = False, **settings: Any
    ) -> Path:
        config = AutoConfig.for_model(model_type, **{**TINY, **settings})
        config.architectures = architectures
        if weights:
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        else:
            config.save_pretrained(tmp_path)
            save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        bos_tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return make


pytestmark = pytest.mark.filterwarnings("ignore:.*has not been GEM-trained")


@pytest.mark.parametrize(
    ("model_type", "architecture", "settings", "reason"),
    [
        ("deepseek_v3", "DeepseekV3ForCausalLM", LATENT, "multi-head latent attention"),
        ("jamba", "JambaForCausalLM", STATE, "carry a state"),
        ("mamba", "MambaForCausalLM", {"state_size": 8}, "carry a state"),
        ("gemma4_text", "Gemma4ForCausalLM", {}, "feeds token ids into every layer"),
    ],
)
def test_architectures_without_plain_attention_are_refused_by_name(
    model_type: str,
    architecture: str,
    settings: dict[str, Any],
    reason: str,
    saved: Callable[..., Path],
) -> None:
    folder = saved(model_type, [architecture], **settings)
    with pytest.raises(GemError, match=f"{architecture}.*{reason}"):
        gem_rag.load(folder, engine="vllm", **IN_PROCESS)


def test_what_fails_in_vllm_while_it_starts_is_one_sentence(saved: Callable[..., Path]) -> None:
    """This model's attention goes around the interface that vLLM replaces."""
    folder = saved("diffllama", ["DiffLlamaForCausalLM"], weights=True, head_dim=32)
    with pytest.raises(GemError, match=r"^vLLM did not start: Layer 0 .*attention") as error:
        gem_rag.load(folder, engine="vllm", **IN_PROCESS)
    assert "\n" not in str(error.value)


def test_soft_capped_attention_is_refused_by_name(saved: Callable[..., Path]) -> None:
    folder = saved("gemma2", ["Gemma2ForCausalLM"], weights=True, head_dim=32)
    with pytest.raises(GemError, match=r"Gemma2.*layers\.0.*logits_soft_cap"):
        gem_rag.load(folder, engine="vllm", **IN_PROCESS)


def test_a_model_that_vllm_does_not_know_is_refused(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace("LlamaForCausalLM", "NobodyForCausalLM"), encoding="utf-8"
    )
    with pytest.raises(InputError, match=rf"cannot run {re.escape(str(folder))}.*Nobody"):
        gem_rag.load(folder, engine="vllm", **IN_PROCESS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enforce_egar": True}, "no engine argument 'enforce_egar' .did you mean 'enforce_eager'"),
        ({"dtype": "float31"}, "dtype"),
        ({"max_model_len": 100_000}, "max_model_len"),
        ({"worker_extension_cls": "a.B"}, "worker_extension_cls is set by gem-rag"),
        ({"embed_share": 0}, "embed_share must be above 0"),
        ({"pipeline_parallel_size": 2}, "do not go with pipeline_parallel_size"),
        ({"enable_lora": True}, "do not go with enable_lora"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(GemError, match=message):
        gem_rag.load("gem-tiny", engine="vllm", **{**IN_PROCESS, **arguments})


def test_texts_never_reach_beyond_a_sliding_window(
    new_folder: Callable[[str], Path], bos_tokenizer: Any
) -> None:
    import helpers
    from conftest import SHAPE

    plain = helpers.save_plain(
        new_folder("window"), "mistral", bos_tokenizer, sliding_window=24, **SHAPE
    )
    folder = helpers.save_gem(new_folder("gem-window"), plain, k=2)
    with (
        gem_rag.load(folder, engine="vllm", **IN_PROCESS) as gem,
        gem_rag.load(folder) as reference,
    ):
        assert gem.max_length == reference.max_length == 22
        text = "Indexes hold vectors, and vectors come from text. " * 4
        found, wanted = (g.embed_documents([text], truncation="windows") for g in (gem, reference))
        assert np.allclose(found, wanted, atol=1e-4)


def test_a_text_that_does_not_fit_into_what_vllm_left_free_is_refused() -> None:
    capabilities = WorkerCapabilities(
        hidden=8,
        max_text_tokens=99,
        max_step_tokens=64,
        free_bytes=5 << 20,
        bytes_per_token=1 << 20,
    )
    capabilities.check([Row.whole([1] * 4)], 1)
    assert capabilities.batch_tokens == 2
    with pytest.raises(GemError, match="needs 6 MiB and vLLM left 5 MiB free: lower gpu_memory"):
        capabilities.check([Row.whole([1] * 5)], 1)
