"""Generation throughput and first tokens, beside transformers' own `generate`.

A random Llama in one process, greedily: one prompt; eight prompts of different lengths as one call,
where `generate` pads them; eight calls that come together, which `generate` runs one after another;
and four streams at once.

    python benchmarks/generation.py [--shape 135M ...] [--tokens N] [--rounds N]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer
from measuring import DEVICE, SHAPES, matrix_product_rate, random_checkpoint, record, timed

import gem_rag
from gem_rag import Gem


def main(
    shape: Annotated[list[str], typer.Option()] = ["7M", "135M"],  # noqa: B006
    tokens: int = 48,
    rounds: int = 3,
) -> None:
    """Record tokens per second, ratios, and the seconds until each stream's first token."""
    for name in shape:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = random_checkpoint(Path(folder), SHAPES[name], 1, 0)
            with gem_rag.load(checkpoint) as gem:
                measure(name, gem, tokens, rounds)


def measure(shape: str, gem: Gem, tokens: int, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [20, 200, 35, 120, 60, 90, 25, 150]
    prompts = [torch.randint(5, 2000, (n,), generator=generator).tolist() for n in lengths]
    one, many = prompts[:1], len(prompts)
    figures: dict[str, object] = {"shape": shape, "tokens_each": tokens}
    cases: dict[str, tuple[int, Callable[[], object], Callable[[], object]]] = {
        "one_prompt": (
            1,
            lambda: gem.generate(one, max_tokens=tokens),
            lambda: by_transformers(gem, one, tokens),
        ),
        "one_call_of_8": (
            many,
            lambda: gem.generate(prompts, max_tokens=tokens),
            lambda: by_transformers(gem, prompts, tokens),
        ),
        "8_calls": (
            many,
            lambda: at_once(lambda p: gem.generate([p], max_tokens=tokens), prompts),
            lambda: [by_transformers(gem, [prompt], tokens) for prompt in prompts],
        ),
    }
    for case, (count, run, run_theirs) in cases.items():
        seconds: list[tuple[float, float]] = []
        for number in range(rounds + 1):  # the first is a warm-up
            taken = timed(run), timed(run_theirs)
            if number:
                seconds.append(taken)
        figures[f"{case}_tokens_per_second"] = round(
            count * tokens / statistics.median(a for a, _ in seconds), 1
        )
        figures[f"{case}_over_transformers"] = round(
            statistics.median(b / a for a, b in seconds), 2
        )
    figures["first_tokens_of_4_streams"] = first_tokens(gem, prompts[:4], tokens)
    figures["tflops"] = round(matrix_product_rate() / 1e12, 3)
    record("generation", figures)


@torch.inference_mode()
def by_transformers(gem: Gem, prompts: list[list[int]], tokens: int) -> None:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with gem.language_model() as model:
        model.generate(
            ids.to(DEVICE), attention_mask=mask.to(DEVICE), max_new_tokens=tokens, do_sample=False
        )


def at_once(call: Callable[[list[int]], object], prompts: list[list[int]]) -> None:
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(call, prompts))


def first_tokens(gem: Gem, prompts: list[list[int]], tokens: int) -> list[float]:
    """Seconds until each of some streams that begin together shows its first piece."""
    start = time.perf_counter()

    def read(prompt: list[int]) -> float:
        stream = gem.stream(prompt, max_tokens=tokens)
        next(stream)
        first = time.perf_counter() - start
        for _ in stream:
            pass
        return round(first, 3)

    with ThreadPoolExecutor(len(prompts)) as pool:
        return sorted(pool.map(read, prompts))


if __name__ == "__main__":
    typer.run(main)
