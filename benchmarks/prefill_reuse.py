"""What kept keys and values save: seconds to the first token of an answer, with reuse and without.

A passage of 250, 1,000 and 4,000 tokens (random words) after the head of an answer's prompt: read
without reuse, from memory, and from disk, one after another in turn; medians.

    python benchmarks/prefill_reuse.py [--shape 135M] [--folder FOLDER] [--length N ...]

Without --folder, weights are random.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from measuring import DTYPE, SHAPES, matrix_product_rate, random_checkpoint, record, timed

import gem_rag
from gem_rag.engines.prefix_store import LEAST_TOKENS, PrefixStore
from gem_rag.model import Gem

CONTEXT = 8192
QUESTION = "\n\nQuestion: What does the passage say of it?\nAnswer:"


def main(
    shape: str = "135M",
    folder: Annotated[Path | None, typer.Option(help="a model of this shape")] = None,
    length: Annotated[list[int], typer.Option(help="tokens of the passage")] = [250, 1000, 4000],  # noqa: B006
    rounds: int = 3,
) -> None:
    """Record each length."""
    with tempfile.TemporaryDirectory() as work:
        path = folder or random_checkpoint(Path(work), SHAPES[shape], 1, 0, CONTEXT)
        with both(path) as (gem, plain):
            for tokens in length:
                figures = first_token(gem, plain, tokens, rounds, Path(work) / str(tokens))
                case = {"shape": shape, "tokens_each": tokens, "rounds": rounds}
                weights = "random" if folder is None else folder.name
                record("prefill_reuse", {**case, "weights": weights, "dtype": gem.dtype, **figures})


def first_token(gem: Gem, plain: Gem, length: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians of one length, of ways that take turns."""
    passage = random_passage(gem, length)
    prefix = gem.answer_prefix(passage)
    prompt = [*prefix, *gem.tokenize(QUESTION)]
    store: PrefixStore = gem._engine._prefixes.store
    writing = timed(partial(gem.keep_prefixes, [prefix], folder, 1 << 40))

    def from_memory() -> int:
        return first(gem, prompt)

    def from_disk() -> int:
        store.clear()
        return first(gem, prompt)

    ways: dict[str, Callable[[], int]] = {
        "without": lambda: first(plain, prompt),
        "disk": from_disk,
        "memory": from_memory,  # what the one before left there
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    reused: dict[str, int] = {}
    for number in range(rounds + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            reused[way] = run()
            if number:  # after a warm-up
                seconds[way].append(time.perf_counter() - start)
    median = {way: statistics.median(taken) for way, taken in seconds.items()}
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    figures: dict[str, Any] = {"prompt_tokens": len(prompt), "reused_tokens": reused["memory"]}
    figures |= {f"{way}_seconds": round(value, 4) for way, value in median.items()}
    figures |= {
        f"{way}_sooner": round(median["without"] / median[way], 2) for way in ("memory", "disk")
    }
    return {
        **figures,
        "writing_seconds": round(writing, 3),
        "kilobytes_per_token": round(store.num_bytes / store_tokens(store) / 1000, 1),
        "disk_megabytes": round(size / 1e6, 1),
        "least_tokens": LEAST_TOKENS,
        "tflops": round(matrix_product_rate() / 1e12, 3),
    }


def first(gem: Gem, prompt: Sequence[int]) -> int:
    """Generate one token; how many of the prompt's were reused."""
    [found] = gem.generate([prompt], max_tokens=1)
    return found.reused_tokens


def store_tokens(store: PrefixStore) -> int:
    return sum(len(prefix.ids) for prefix in store._prefixes.values())


def random_passage(gem: Gem, length: int) -> str:
    """Random words of so many tokens."""
    draw = random.Random(length)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(length)]
    encoding = gem.tokenizer.encode(" ".join(words), add_special_tokens=False)
    return " ".join(words)[: encoding.offsets[length - 1][1]]


@contextmanager
def both(model: str | Path) -> Iterator[tuple[Gem, Gem]]:
    """A model with a prefix cache, and without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random and base models have not been GEM-trained
        dtype = str(DTYPE).removeprefix("torch.")
        gem = gem_rag.load(model, prefix_cache_bytes=4 << 30, dtype=dtype)
        plain = gem_rag.load(model, prefix_cache_bytes=0, dtype=dtype)
    with gem, plain:
        yield gem, plain


if __name__ == "__main__":
    typer.run(main)
