"""How many tokens a pass holds follows the memory that is free."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gem_rag.core import memory

GPU = torch.device("cuda")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends a card with so much memory free."""

    def with_free(free: int, cached: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: cached)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)

    return with_free


def test_a_token_takes_its_keys_and_values_and_a_layers_work(tiny_model: Any) -> None:
    config = tiny_model("llama").config
    layers, width = config.num_hidden_layers, config.num_key_value_heads * config.head_dim
    kept = 2 * layers * width
    work = 8 * config.hidden_size + 3 * config.intermediate_size
    assert memory.bytes_per_token(tiny_model("llama")) == 4 * (kept + work)
    assert memory.bytes_per_token(tiny_model("llama"), 1) == 4 * (kept // layers + work)


def test_a_pass_takes_half_of_what_is_free(tiny_model: Any, card: Any) -> None:
    model = tiny_model("llama")
    card(40_000 * memory.bytes_per_token(model), cached=20_000 * memory.bytes_per_token(model))
    assert memory.pass_tokens(model, GPU) == 30_000


@pytest.mark.parametrize(("free", "tokens"), [(0, 8192), (2**50, 2**18)])
def test_passes_are_neither_tiny_nor_boundless(
    tiny_model: Any, card: Any, free: int, tokens: int
) -> None:
    card(free)
    assert memory.pass_tokens(tiny_model("gpt_neox"), GPU) == tokens


def test_a_cpu_is_busy_with_small_passes(tiny_model: Any) -> None:
    assert memory.pass_tokens(tiny_model("llama"), torch.device("cpu")) == memory.CPU_TOKENS
