"""Tiny random models of families that need more settings than `helpers.build_model` gives."""

from __future__ import annotations

from typing import Any

import helpers
import torch
from transformers import AutoConfig, AutoModelForCausalLM

_MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": None,
}  # fmt: skip
_EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
_GPT_2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": helpers.CONTEXT}
_OPT = {"ffn_dim": 64, "word_embed_proj_dim": 32}
# By a name of ours: transformers' name of the architecture, and settings.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "opt": ("opt", _OPT),
    "opt with a projection": (
        "opt", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    ),
    "gpt2": ("gpt2", _GPT_2),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **_EXPERTS, "shared_expert_intermediate_size": 16, "num_experts": 4,
            "decoder_sparse_step": 1,
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "phimoe": ("phimoe", {"num_local_experts": 4}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **_MLA, **_EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
            "n_shared_experts": 1, "first_k_dense_replace": 1,
        },
    ),
}  # fmt: skip
_IMAGES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def build_family(name: str) -> Any:
    """A random model of a family."""
    if name == "gemma3 with images":
        return _build_gemma3()
    architecture, settings = SETTINGS[name]
    return helpers.build_model(architecture, **settings)


FAMILIES = (*SETTINGS, "gemma3 with images")


def _build_gemma3() -> Any:
    text = helpers.build_model("gemma3_text").config.to_dict()
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=_IMAGES, mm_tokens_per_image=4,
        image_token_index=5, boi_token_index=6, eoi_token_index=7,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    helpers.randomise(model)
    return model.eval()
