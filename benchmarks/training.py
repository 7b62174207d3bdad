"""One training step in the `special` scope, beside a plain forward pass of its tokens.

The step embeds queries and documents of mixed length and takes the gradients of the special
tokens' weights; the plain pass runs the same texts through the same random Llama without
gradients, padded alike. Both use bfloat16, in turn, in one process; the ratio to quote is the
median of the rounds. Also recorded: how many operations each launches.

    python benchmarks/training.py [--shape 135M] [--pairs N] [--rounds N]
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
import typer
from measuring import (
    DEVICE,
    SHAPES,
    launches,
    matrix_product_rate,
    record,
    timed,
    weights_in_layers,
)
from transformers import AutoModelForCausalLM, LlamaConfig

from gem_rag.core.layout import Layout, Row, plan_batches
from gem_rag.core.memory import pass_tokens
from gem_rag.training.recipe import Adapter, Memory
from gem_rag.training.scopes import prepare_special


def main(
    shape: str = "135M", pairs: int = 256, rounds: int = 3, k: int = 1, rank: int = 32
) -> None:
    """Record seconds, the ratio and launches."""
    torch.manual_seed(0)
    size = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=size.hidden, intermediate_size=size.inner, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.key_heads, vocab_size=49152,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().to(DEVICE)
    encoder = prepare_special(model, k, adapter=Adapter(rank=rank)).encoder
    layouts, tokens = mixed_layouts(pairs, k)
    most = pass_tokens(model, DEVICE)

    def plain() -> None:
        with torch.no_grad():
            for layout in layouts:
                ids = torch.as_tensor(layout.ids[:, : layout.rest_start], device=DEVICE)
                model.base_model(input_ids=ids, use_cache=False)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            vectors = encoder.embed_in_halves(layouts, frozen_texts=True, pass_tokens=most)
        vectors.sum().backward()

    seconds = []
    for number in range(rounds + 1):  # the first is a warm-up
        taken = timed(plain), timed(step)
        if number:
            seconds.append(taken)
    plain_seconds, step_seconds = (statistics.median(part) for part in zip(*seconds, strict=True))
    peak = matrix_product_rate(torch.bfloat16)
    record(
        "training",
        {
            "shape": shape, "pairs": pairs, "tokens": tokens, "passes": len(layouts), "k": k,
            "rank": rank,
            "plain_seconds": round(plain_seconds, 3),
            "step_seconds": round(step_seconds, 3),
            "step_over_plain": round(statistics.median(s / p for p, s in seconds), 2),
            "plain_launches": launches(plain),
            "step_launches": launches(step),
            "tflops": round(peak / 1e12, 3),
            "plain_share_of_peak": round(
                2 * weights_in_layers(model) * tokens / plain_seconds / peak, 3
            ),
        },
    )  # fmt: skip


def mixed_layouts(pairs: int, k: int) -> tuple[list[Layout], int]:
    """Queries of 8 to 31 tokens and documents of 20 to 179, as a recipe's memory splits them."""
    random = np.random.default_rng(0)
    lengths = [*random.integers(8, 32, pairs), *random.integers(20, 180, pairs)]
    rows = [Row.whole(random.integers(5, 40_000, int(length)).tolist()) for length in lengths]
    memory = Memory()
    batches = plan_batches([row.length(k) for row in rows], memory.tokens, memory.padding)
    layouts = [Layout.build([rows[i] for i in batch], k) for batch in batches]
    return layouts, int(sum(lengths))


if __name__ == "__main__":
    typer.run(main)
