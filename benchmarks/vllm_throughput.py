"""One vLLM engine that embeds and generates, beside the ways to have only one of the two.

Embedding, tokens per second, same weights and texts of mixed length: gem-rag's embedding path in
vLLM, vLLM's own pooling runner (last token of the same model, prefix caching off, since texts
come once), sentence-transformers on the exported model, and gem-rag's transformers engine.
Generation, tokens per second: alone, and with an endless load of embeddings beside it.

Each way runs in a process of its own, round by round in turn, on a random Llama in bfloat16
(speed does not depend on what weights say), or on `--model`.

    python benchmarks/vllm_throughput.py [--model FOLDER] [--tokens N] [--rounds N]
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

WAYS = {
    "gem-rag, vLLM engine": "vllm",
    "vLLM's pooling runner": "pooling",
    "sentence-transformers": "sentence_transformers",
    "gem-rag, transformers engine": "transformers",
}
LONGEST = 256
KV_BYTES = 1 << 30
MARK = "answer: "


def main(
    model: Path | None = None,
    tokens: int = 40_000,
    rounds: int = 5,
    child: str | None = typer.Option(None, hidden=True),
) -> None:
    """Print tokens per second and ratios."""
    if child is not None:
        assert model is not None
        serve(child, model, tokens)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = model or random_model(Path(scratch))
        export = exported(folder, Path(scratch) / "exported")
        counted = ("--tokens", str(tokens))
        children = {
            way: Child(
                __file__, way, export if way == "sentence_transformers" else folder, *counted
            )
            for way in WAYS.values()
        }
        figures: dict[str, list[dict[str, Any]]] = {way: [] for way in children}
        for turn in range(rounds + 1):  # the first is a warm-up
            for way, process in children.items():
                found = process.round()
                if turn:
                    figures[way].append(found)
        for process in children.values():
            process.end()
        process = Child(__file__, "generation", folder, *counted)
        generated = process.round()
        process.end()
    report(figures, generated, folder.name)


class Child:
    """A script in a process of its own, which answers with lines of JSON.

    first: its first answer, when it is ready.
    """

    def __init__(self, script: str, way: str, model: Path, *arguments: str) -> None:
        command = [sys.executable, script, "--child", way, "--model", str(model), *arguments]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self._answer()

    def round(self) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(MARK):
                result: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return result
        raise SystemExit("a child process has failed: see above")


def report(figures: dict[str, list[dict[str, Any]]], generated: dict[str, Any], name: str) -> None:
    console = Console()
    own = [found["seconds"] for found in figures["vllm"]]
    table = Table("embedding", "tokens/s", "the vLLM engine is faster by")
    for title, way in WAYS.items():
        seconds = [found["seconds"] for found in figures[way]]
        ratios = [other / mine for other, mine in zip(seconds, own, strict=True)]
        rate = figures[way][0]["tokens"] / statistics.median(seconds)
        table.add_row(title, f"{rate:.0f}", f"{statistics.median(ratios):.2f}")
    console.print(table)
    table = Table("generation", "tokens/s", "embedding beside it, tokens/s")
    for title, (written, embedded) in generated.items():
        table.add_row(title, f"{written:.0f}", f"{embedded:.0f}")
    console.print(table)
    counted = figures["vllm"][0]
    console.print(f"{counted['texts']} texts, {counted['tokens']} tokens; {name}; {device()}")


# -- in a process of its own --------------------------------------------------------------------


def serve(way: str, model: Path, tokens: int) -> None:
    """Load, and run a round for every line read."""
    if way == "generation":
        embed, texts, counted = None, [], 0
    else:
        make: Callable[[Path], tuple[Callable[[list[str]], Any], Any]] = globals()[f"_{way}"]
        embed, tokenizer = make(model)
        texts, counted = mixed_texts(tokenizer, tokens)
    print(f"\n{MARK}{{}}", flush=True)
    for _ in sys.stdin:
        if embed is None:
            found: dict[str, Any] = generation(model, tokens)
        else:
            start = time.perf_counter()
            embed(texts)
            seconds = time.perf_counter() - start
            found = {"seconds": seconds, "texts": len(texts), "tokens": counted}
        print(f"\n{MARK}{json.dumps(found)}", flush=True)


def mixed_texts(tokenizer: Any, tokens: int) -> tuple[list[str], int]:
    """Pieces of Python's reference, from 4 to 250 tokens, short ones as often as long ones."""
    ids = tokenizer("\n".join(topics.values()))["input_ids"]
    random = np.random.default_rng(0)
    texts: list[str] = []
    at = counted = 0
    while counted < tokens:
        length = int(np.exp(random.uniform(np.log(4), np.log(LONGEST - 6))))
        text = tokenizer.decode(ids[at : at + length]).strip()
        at = (at + length) % (len(ids) - LONGEST)
        if text:
            texts.append(text)
            counted += len(tokenizer(text)["input_ids"])
    return texts, counted


def _gem(model: Path, engine: str, **options: Any) -> tuple[Callable[[list[str]], Any], Any]:
    import gem_rag

    gem = gem_rag.load(model, engine=engine, dtype="bfloat16", **options)
    return gem.embed_documents, gem._engine.tokenizer.hf_tokenizer


def _vllm(model: Path) -> tuple[Callable[[list[str]], Any], Any]:
    return _gem(model, "vllm", in_process=True, kv_cache_memory_bytes=KV_BYTES)


def _transformers(model: Path) -> tuple[Callable[[list[str]], Any], Any]:
    return _gem(model, "transformers")


def _pooling(model: Path) -> tuple[Callable[[list[str]], Any], Any]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM
    from vllm.config import PoolerConfig

    llm = LLM(
        str(model), runner="pooling", convert="embed", dtype="bfloat16",
        pooler_config=PoolerConfig(pooling_type="LAST"), enable_prefix_caching=False,
        kv_cache_memory_bytes=KV_BYTES,
    )  # fmt: skip
    return lambda texts: llm.embed(texts, use_tqdm=False), llm.get_tokenizer()


def _sentence_transformers(folder: Path) -> tuple[Callable[[list[str]], Any], Any]:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    model = SentenceTransformer(str(folder), model_kwargs={"dtype": "bfloat16"})
    return model.encode_document, AutoTokenizer.from_pretrained(folder)


def generation(model: Path, tokens: int) -> dict[str, tuple[float, float]]:
    """Tokens per second of eight threads that generate: alone, and beside embeddings."""
    import gem_rag

    found = {}
    for title, share in (("alone", None), ("share .5", 0.5), ("share .2", 0.2)):
        gem = gem_rag.load(
            model, engine="vllm", dtype="bfloat16", in_process=True,
            embed_share=share or 0.5, kv_cache_memory_bytes=KV_BYTES,
        )  # fmt: skip
        texts, _ = mixed_texts(gem._engine.tokenizer.hf_tokenizer, tokens)
        prompts = [texts[i] for i in range(8)]
        done, embedded = threading.Event(), 0

        def load(gem: Any = gem, texts: list[str] = texts, done: Any = done) -> None:
            nonlocal embedded
            while not done.is_set():
                for start in range(0, len(texts), 64):
                    part = texts[start : start + 64]
                    gem.embed_documents(part)
                    embedded += sum(gem.count_tokens(text) for text in part)
                    if done.is_set():
                        return

        gem.generate(prompts, max_tokens=8)  # warm
        threads = [threading.Thread(target=load) for _ in range(2 if share else 0)]
        for thread in threads:
            thread.start()
        start = time.perf_counter()
        written = sum(len(g.tokens) for g in gem.generate(prompts, max_tokens=200))
        seconds = time.perf_counter() - start
        done.set()
        found[f"with embeddings, {title}" if share else title] = (
            written / seconds, embedded / seconds
        )  # fmt: skip
        for thread in threads:
            thread.join()
        gem.close()
    return found


# -- the model ------------------------------------------------------------------------------------


def random_model(scratch: Path, hidden: int = 768, layers: int = 10) -> Path:
    """A GEM folder of a random Llama with gem-tiny's tokenizer (k = 1, no adapters)."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from gem_rag.assets import GEM_TINY
    from gem_rag.core.checkpoint import save_checkpoint
    from gem_rag.core.config import GemConfig

    tokenizer = AutoTokenizer.from_pretrained(GEM_TINY.folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256, max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    base = scratch / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    special = {"special_embeddings": torch.randn(1, hidden, dtype=torch.bfloat16) * 0.02}
    millions = sum(p.numel() for p in model.parameters()) // 1_000_000
    folder = scratch / f"random-llama-{millions}m"
    save_checkpoint(folder, base, GemConfig(k=1, scope="full"), special)
    return folder


def exported(model: Path, folder: Path) -> Path:
    from gem_rag.interop.export import to_sentence_transformers

    return to_sentence_transformers(model, folder)


def device() -> str:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    typer.run(main)
