"""One copy of the weights: memory of an engine that does both, beside its parts.

Each row is measured in processes of its own: vLLM that only generates, the engine that generates
and embeds, and two vLLM engines (one generates, one is a pooling runner), which is what vLLM
users are told to run. Everything runs in one process for each engine, on the same model, with the
same key/value cache; each generates, and embeds where it can, before memory is read. On a GPU the
device's memory counts, elsewhere the processes' own (proportional set size).

    python benchmarks/vllm_memory.py [--model FOLDER] [--hidden N] [--layers N]
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import typer
from rich.console import Console
from rich.table import Table
from vllm_throughput import MARK, Child, random_model

KV_BYTES = 256 << 20
PROMPTS = ["The list is sorted", "A file is opened"] * 8
ROWS = {
    "vLLM, generation only": ["generate"],
    "gem-rag: one engine, both": ["both"],
    "two vLLM engines, one for each": ["generate", "pool"],
}


def main(
    model: Path | None = None,
    hidden: int = 2048,
    layers: int = 16,
    child: str | None = typer.Option(None, hidden=True),
) -> None:
    """Print a table."""
    if child is not None:
        assert model is not None
        print(f"\n{MARK}{json.dumps(measured(child, model))}", flush=True)
        sys.stdin.read()  # stay until the parent has seen everyone
        os._exit(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model or random_model(Path(scratch), hidden, layers)
        weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) >> 20
        found = {title: together(folder, parts) for title, parts in ROWS.items()}
    table = Table("", "MiB", "beside generation only")
    alone = found["vLLM, generation only"]
    for title, used in found.items():
        table.add_row(title, f"{used >> 20}", f"{(used - alone) >> 20:+}")
    console = Console()
    console.print(table)
    console.print(
        f"{folder.name}: weights {weights} MiB, key/value cache {KV_BYTES >> 20} MiB for each "
        f"engine; {platform.machine()}"
    )


def together(folder: Path, parts: list[str]) -> int:
    """Bytes that the parts hold while all of them are up."""
    children = [Child(__file__, part, folder) for part in parts]
    used = sum(child.first["bytes"] for child in children)
    for child in children:
        child.end()
    return used


def measured(part: str, folder: Path) -> dict[str, Any]:
    import torch

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    settings = {"dtype": "bfloat16", "kv_cache_memory_bytes": KV_BYTES, "max_model_len": 512}
    if part == "both":
        import gem_rag

        gem = gem_rag.load(folder, engine="vllm", in_process=True, **settings)
        for _ in range(3):
            gem.generate(PROMPTS, max_tokens=8)
            gem.embed_documents(PROMPTS)
    else:
        from vllm import LLM, SamplingParams

        pool = {"runner": "pooling", "convert": "embed"} if part == "pool" else {}
        llm = LLM(str(folder), **settings, **pool)
        for _ in range(3):
            if pool:
                llm.embed(PROMPTS, use_tqdm=False)
            else:
                llm.generate(PROMPTS, SamplingParams(max_tokens=8), use_tqdm=False)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return {"bytes": total - free}
    return {"bytes": psutil.Process().memory_full_info().pss}


if __name__ == "__main__":
    typer.run(main)
