"""Tiny random models of families that need more settings than `helpers.build_model` gives."""

from __future__ import annotations

from typing import Any

import helpers
import torch
import torch.nn.functional as F
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from gem_rag.core.adapter_targets import place_adapters
from gem_rag.core.config import AdapterConfig
from gem_rag.core.encoder import GemEncoder, check_supported

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
_STATES = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
# Those that cannot be told who attends to whom: they have one special token, after a whole text.
ONLY_CAUSAL: dict[str, dict[str, Any]] = {
    "qwen3_5_text": _LINEAR,
    "qwen3_next": {
        **_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 16, "num_experts": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "granitemoehybrid": {
        **_STATES, "layer_types": ["mamba", "attention"], "num_local_experts": 4,
        "num_experts_per_tok": 2, "shared_intermediate_size": 32,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "falcon_mamba": {"state_size": 8},
    "bamba": {**_STATES, "attn_layer_indices": [1]},
    "jamba": {
        "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
        "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 4,
    },
    "nemotron_h": {},
    "falcon_h1": {**_STATES, "mamba_d_ssm": 64},
    "olmo_hybrid": {},
    "minimax": {},
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma2": {"attn_logit_softcapping": 5.0, "sliding_window": 8},
    "gemma3n_text": {
        "vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
        "altup_num_inputs": 2, "num_kv_shared_layers": 0, "sliding_window": 8,
        "activation_sparsity_pattern": [0.5, 0.0],
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma4_text": {"sliding_window": 8},
    "gptj": {**_GPT_2, "rotary_dim": 4},
    "codegen": {**_GPT_2, "rotary_dim": 4},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
    "falcon": {"head_dim": None},
    "stablelm": {},
    "nemotron": {},
    "diffllama": {},
}  # fmt: skip
_IMAGES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def build_family(name: str, **shape: Any) -> Any:
    """A random model of a family; of another shape than `helpers.build_model` gives, if any."""
    if name in WITH_IMAGES:
        return _build_with_images(name, **shape)
    if name in PLAIN:
        return helpers.build_model(name, **shape)
    if name in ONLY_CAUSAL:
        return helpers.build_model(name, **{**shape, **ONLY_CAUSAL[name]})
    architecture, settings = SETTINGS[name]
    return helpers.build_model(architecture, **{**shape, **settings})


_ROTARY = {"rope_parameters": {
    "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4,
}}  # fmt: skip
_TOWER = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}
# By a name of ours: the text model, its settings, the image encoder's, and others.
WITH_IMAGES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3 with images": (
        "gemma3_text", {}, _IMAGES,
        {"mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6,
         "eoi_token_index": 7},
    ),
    "mistral3": ("mistral", {}, _IMAGES, {}),
    "llava": ("llama", {}, {"model_type": "clip_vision_model", **_IMAGES}, {}),
    "qwen2_vl": (
        "qwen2", {"model_type": "qwen2_vl_text", **_ROTARY},
        {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}, {},
    ),
    "qwen3_vl": (
        "qwen3", {"model_type": "qwen3_vl_text", **_ROTARY},
        {**_TOWER, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}, {},
    ),
}  # fmt: skip
FAMILIES = (*SETTINGS, *WITH_IMAGES)
# Those that need no settings of their own.
PLAIN = (
    "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi", "gpt_neox", "gpt_bigcode", "biogpt",
    "cohere", "cohere2", "glm4", "persimmon", "starcoder2",
)  # fmt: skip
EVERY_FAMILY = tuple(sorted((*FAMILIES, *PLAIN, *ONLY_CAUSAL)))


def adapted_encoder(family: str) -> GemEncoder:
    """An encoder whose adapters all do something."""
    model = build_family(family)
    encoder = GemEncoder(model, 1, adapter=AdapterConfig(4, 4.0, place_adapters(model).rows))
    check_supported(encoder)
    helpers.randomise(encoder.special)
    return encoder.eval()


def reference_vector(encoder: GemEncoder, reference: Any, text: list[int]) -> torch.Tensor:
    """A text's vector by a plain model: adapters and the embedding act on the last position."""
    special = encoder.special

    def replace_last(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :-1], special.embeddings[None]], dim=1)

    def adapt_last(update: Any) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            low = inputs[0][:, -1:] @ update.lora_A.weight.T @ update.lora_B.weight.T
            return torch.cat([output[:, :-1], output[:, -1:] + update.scale * low], dim=1)

        return hook

    hooks = [reference.get_input_embeddings().register_forward_hook(replace_last)]
    for name, update in special.lora.items():
        layer = reference.get_submodule(name.replace("/", "."))
        hooks.append(layer.register_forward_hook(adapt_last(update)))
    hidden = reference.base_model(torch.tensor([[*text, 0]]), use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    return F.normalize(hidden[0, -1].float(), dim=-1)


def _build_with_images(name: str, **shape: Any) -> Any:
    """A random model that reads images too."""
    text_name, text, vision, settings = WITH_IMAGES[name]
    text = {**helpers.build_model(text_name, **shape).config.to_dict(), **text}
    config = AutoConfig.for_model(
        name.partition(" ")[0], text_config=text, vision_config=vision, **settings
    )
    torch.manual_seed(0)
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    auto = AutoModelForCausalLM if known else AutoModelForImageTextToText
    model = auto.from_config(config, dtype=torch.float32)
    helpers.randomise(model)
    return model.eval()
