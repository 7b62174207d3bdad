"""One training step in the `special` scope, beside a plain forward pass of its tokens.

The step embeds queries and documents of mixed length and takes the gradients of the special
tokens' weights; the plain pass runs the same texts through the same random Llama without
gradients, padded alike. Both use bfloat16 autocast, in turn, in one process; the ratio to quote is
the median of the rounds. Also printed: how many operations each launches (views not counted), and
the plain pass's share of the device's own rate for matrix products.

    python benchmarks/special_step.py [--pairs N] [--rounds N] [--hidden N --layers N ...]

Each figure is added to benchmarks/results/ as a line of JSON.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig

from gem_rag.core.layout import Layout, Row, plan_batches
from gem_rag.training.recipe import Adapter, Memory
from gem_rag.training.scopes import prepare_special

RESULTS = Path(__file__).with_name("results")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Launches(TorchDispatchMode):
    """Counts the operations that a device runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "_unsafe_view" in str(func))
        return func(*args, **(kwargs or {}))


def main(
    pairs: int = 256,
    rounds: int = 3,
    k: int = 4,
    rank: int = 32,
    hidden: int = 576,
    layers: int = 30,
    heads: int = 9,
    key_heads: int = 3,
) -> None:
    """Print seconds, the ratio and launches; the defaults are SmolLM2-135M's shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, vocab_size=49152,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().to(DEVICE)
    encoder = prepare_special(model, k, adapter=Adapter(rank=rank)).encoder
    layouts, tokens = mixed_layouts(pairs, k)

    def plain() -> None:
        with torch.no_grad():
            for layout in layouts:
                ids = torch.as_tensor(layout.ids[:, : layout.rest_start], device=DEVICE)
                model.base_model(input_ids=ids, use_cache=False)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            vectors = encoder.embed_in_halves(layouts, frozen_texts=True)
        vectors.sum().backward()

    seconds: dict[str, list[float]] = {"plain": [], "step": []}
    for number in range(rounds + 1):  # the first is a warm-up
        for name, run in (("plain", plain), ("step", step)):
            taken = timed(run)
            if number:
                seconds[name].append(taken)
    ratio = statistics.median(s / p for s, p in zip(seconds["step"], seconds["plain"], strict=True))
    weights = sum(p.numel() for p in model.base_model.layers.parameters())
    peak = matrix_product_rate()
    report(
        {
            "pairs": pairs,
            "tokens": tokens,
            "passes": len(layouts),
            "plain_seconds": round(statistics.median(seconds["plain"]), 3),
            "step_seconds": round(statistics.median(seconds["step"]), 3),
            "step_over_plain": round(ratio, 2),
            "plain_launches": counted(plain),
            "step_launches": counted(step),
            "tflops": round(peak / 1e12, 3),
            "plain_share_of_peak": round(
                2 * weights * tokens / statistics.median(seconds["plain"]) / peak, 3
            ),
            "shape": f"{hidden} hidden, {layers} layers, {heads}/{key_heads} heads",
        }
    )


def mixed_layouts(pairs: int, k: int) -> tuple[list[Layout], int]:
    """Queries of 8 to 31 tokens and documents of 20 to 179, as a recipe's memory splits them."""
    random = np.random.default_rng(0)
    lengths = [*random.integers(8, 32, pairs), *random.integers(20, 180, pairs)]
    rows = [Row.whole(random.integers(5, 40_000, int(length)).tolist()) for length in lengths]
    memory = Memory()
    batches = plan_batches([row.length(k) for row in rows], memory.tokens, memory.padding)
    layouts = [Layout.build([rows[i] for i in batch], k) for batch in batches]
    return layouts, int(sum(lengths))


def timed(run: Callable[[], None]) -> float:
    """Seconds that a call takes, and the device with it."""
    start = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def counted(run: Callable[[], None]) -> int:
    with Launches() as launches:
        run()
    return launches.count


def matrix_product_rate(size: int = 2048) -> float:
    """Operations per second of a large bfloat16 matrix product."""
    a = torch.randn(size, size, dtype=torch.bfloat16, device=DEVICE)

    def run() -> None:
        for _ in range(8):
            a @ a

    run()
    return 8 * 2 * size**3 / min(timed(run) for _ in range(3))


def report(figures: dict[str, Any]) -> None:
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.machine()
    if DEVICE.type == "cpu":
        device += f", {torch.get_num_threads()} threads"
    today = datetime.date.today().isoformat()
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
    print(f"{device}, torch {torch.__version__}")
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{re.sub('[^a-z0-9]+', '-', device.lower())}-{today}.jsonl"
    line = {"benchmark": "special_step", "device": device, "torch": torch.__version__, **figures}
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    typer.run(main)
