"""Embedding throughput, beside sentence-transformers and a plain forward pass of the same tokens.

All run the same random Llama in one process on the same texts, in turn, for several rounds: gem-rag
with adapters on every linear layer, from text to vectors; sentence-transformers with mean pooling,
likewise; and the plain causal forward of the token ids in gem-rag's own batches.

    python benchmarks/embedding.py [--shape 135M ...] [--texts mixed ...] [--compile] [--count N]
        [--rounds N]
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from measuring import (
    DEVICE,
    DTYPE,
    SHAPES,
    Shape,
    matrix_product_rate,
    random_checkpoint,
    random_lengths,
    record,
    timed,
    weights_in_layers,
)
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer

import gem_rag
from gem_rag import Gem
from gem_rag.core.layout import plan_batches

_PLAIN_TOKENS = 32_768 if DEVICE.type == "cuda" else 4096  # of a plain forward pass: the fastest


def main(
    shape: Annotated[list[str], typer.Option()] = ["7M", "135M"],  # noqa: B006
    texts: Annotated[list[str], typer.Option()] = ["short", "mixed", "long"],  # noqa: B006
    count: int = 200,
    rounds: int = 3,
    k: int = 1,
    rank: int = 32,
    compile: bool = False,
) -> None:
    """Record tokens per second, ratios, and shares of the device's matrix-product rate."""
    for name in shape:
        with both(SHAPES[name], k, rank, compile=compile) as (gem, peer):
            for kind in texts:
                measure(name, gem, peer, kind, count, rounds)


@contextmanager
def both(
    shape: Shape, k: int, rank: int, compile: bool | str = "auto"
) -> Iterator[tuple[Gem, SentenceTransformer]]:
    """A random model of a shape in gem-rag and in sentence-transformers."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(Path(folder), shape, k, rank)
        peer = sentence_transformer(checkpoint)
        with gem_rag.load(checkpoint, compile=compile) as gem:
            yield gem, peer


def sentence_transformer(folder: Path) -> SentenceTransformer:
    transformer = Transformer(str(folder), model_kwargs={"dtype": DTYPE})
    transformer.tokenizer.pad_token = transformer.tokenizer.convert_ids_to_tokens(0)
    modules = [transformer, Pooling(transformer.get_word_embedding_dimension())]
    return SentenceTransformer(modules=modules, device=DEVICE.type)


def measure(
    shape: str, gem: Gem, peer: SentenceTransformer, kind: str, count: int, rounds: int
) -> None:
    texts = texts_of(gem, random_lengths(kind, count))
    rows = [gem.tokenize(text) for text in texts]
    tokens = sum(map(len, rows))
    ways: dict[str, Callable[[], object]] = {
        "gem_rag": lambda: gem.embed_documents(texts),
        "sentence_transformers_32": lambda: peer.encode(texts, batch_size=32),
        "sentence_transformers_256": lambda: peer.encode(texts, batch_size=256),
        "plain_forward": lambda: run_plainly(gem, rows),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):  # the first is a warm-up
        for way, run in ways.items():
            taken = timed(run)
            if number:
                seconds[way].append(taken)
    peak = matrix_product_rate()
    with gem.language_model() as model:
        work = 2 * weights_in_layers(model) * tokens
    figures: dict[str, object] = {
        "shape": shape, "texts": kind, "count": count, "tokens": tokens, "k": gem.config.k,
        "compiled": gem._engine.encoder.compiled,
        "tflops": round(peak / 1e12, 3),
    }  # fmt: skip
    for way, taken in seconds.items():
        median = statistics.median(taken)
        ratios = [t / ours for t, ours in zip(taken, seconds["gem_rag"], strict=True)]
        figures[f"{way}_tokens_per_second"] = round(tokens / median)
        figures[f"{way}_share_of_peak"] = round(work / median / peak, 3)
        if way != "gem_rag":
            figures[f"gem_rag_over_{way}"] = round(statistics.median(ratios), 2)
    record("embedding", figures)


def texts_of(gem: Gem, lengths: list[int]) -> list[str]:
    """Texts of about so many tokens, of the words of Python's own help."""
    from pydoc_data.topics import topics

    ids = gem.tokenize(" ".join(topics.values()))
    texts, start = [], 0
    for length in lengths:
        start = 0 if start + length > len(ids) else start
        texts.append(gem.hf_tokenizer.decode(ids[start : start + length]))
        start += length
    return texts


@torch.inference_mode()
def run_plainly(gem: Gem, rows: list[list[int]]) -> None:
    """A causal forward pass of the texts, in batches of like length and without special tokens."""
    with gem.language_model() as model:
        for batch in plan_batches([len(row) for row in rows], _PLAIN_TOKENS, 0.1):
            chosen = [torch.tensor(rows[i]) for i in batch]
            ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
            model.base_model(input_ids=ids.to(DEVICE), use_cache=False)


if __name__ == "__main__":
    typer.run(main)
