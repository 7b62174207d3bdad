"""What the speed benchmarks share: model shapes, random checkpoints, timing, and recorded figures.

Every figure is added to benchmarks/results/, a file for each device and day, as a line of JSON with
the rate of the device's own matrix products in the same run; `tables.py` makes tables of them.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig

from gem_rag.core.adapter_targets import place_adapters
from gem_rag.core.checkpoint import open_checkpoint, save_checkpoint
from gem_rag.core.config import AdapterConfig, GemConfig
from gem_rag.core.encoder import GemEncoder

RESULTS = Path(__file__).with_name("results")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


@dataclass(frozen=True)
class Shape:
    """A Llama's size, without its vocabulary."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    inner: int


SHAPES = {
    "7M": Shape(256, 8, 4, 4, 704),
    "135M": Shape(576, 30, 9, 3, 1536),
    "0.5B": Shape(896, 24, 14, 2, 4864),
    "1B": Shape(2048, 16, 32, 8, 8192),
}


def random_checkpoint(folder: Path, shape: Shape, k: int, rank: int, context: int = 2048) -> Path:
    """A random Llama with special tokens, adapters of a rank on every linear layer, and gem-tiny's
    tokenizer."""
    tiny = open_checkpoint("gem-tiny")
    base = folder / "base"
    base.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.path / name, base)
    torch.manual_seed(0)
    vocabulary = json.loads((tiny.path / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        vocab_size=vocabulary, max_position_embeddings=context, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    model.save_pretrained(base)
    adapter = AdapterConfig(rank, 2.0 * rank, place_adapters(model).rows) if rank else None
    encoder = GemEncoder(model, k, adapter=adapter)
    tensors = encoder.special.tensors()
    for name, tensor in tensors.items():
        tensors[name] = torch.randn_like(tensor) * 0.02
    scope = "special" if rank else None
    save_checkpoint(folder / "gem", base, GemConfig(k=k, scope=scope, adapter=adapter), tensors)
    return folder / "gem"


def weights_in_layers(model: Any) -> int:
    """Weights that every token is multiplied with."""
    return sum(weight.numel() for weight in model.base_model.layers.parameters())


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes, and the device with it."""
    start = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Launches(TorchDispatchMode):
    """Counts the operations that a device runs; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "_unsafe_view" in str(func))
        return func(*args, **(kwargs or {}))


def launches(run: Callable[[], object]) -> int:
    """Operations that a call launches."""
    with Launches() as counted:
        run()
    return counted.count


def matrix_product_rate(dtype: torch.dtype = DTYPE) -> float:
    """Operations per second of large matrix products."""
    size = 8192 if DEVICE.type == "cuda" else 2048
    a = torch.randn(size, size, dtype=dtype, device=DEVICE)

    def run() -> None:
        for _ in range(8):
            a @ a

    run()
    return 8 * 2 * size**3 / min(timed(run) for _ in range(3))


def random_lengths(kind: str, count: int) -> list[int]:
    """Tokens of texts: "short" 16 to 64, "mixed" 7 to 400 (5 to 300 words), "long" 512."""
    low, high = {"short": (16, 64), "mixed": (7, 400), "long": (512, 512)}[kind]
    return [int(n) for n in np.random.default_rng(0).integers(low, high + 1, count)]


def device_name() -> str:
    """The device, with a CPU's threads and instructions: they make a difference of five times."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability}, {torch.get_num_threads()} threads"


def reciprocal_figures(
    reciprocals: Sequence[float], baseline: Sequence[float], over: str
) -> dict[str, Any]:
    """The mean of reciprocal ranks and its difference from a baseline's, of the name `over`, each
    with its 95 % confidence interval (bootstrap over queries)."""
    from gem_rag.evaluation.significance import interval, paired

    difference = paired(baseline, reciprocals)
    return {
        "mrr": round(sum(reciprocals) / len(reciprocals), 3),
        "mrr from to": [round(end, 3) for end in interval(reciprocals)],
        f"over {over}": round(difference.value, 3),
        f"over {over} from to": [round(difference.low, 3), round(difference.high, 3)],
    }


def record(benchmark: str, figures: dict[str, Any], shown: bool = True) -> None:
    """Print figures, unless the benchmark does so itself, and add them to this device's results of
    today."""
    if shown:
        table = Table("figure", "value", title=benchmark)
        for name, value in figures.items():
            table.add_row(name, str(value))
        Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    today = datetime.date.today().isoformat()
    device = device_name()
    file = RESULTS / f"{re.sub('[^a-z0-9]+', '-', device.lower())}-{today}.jsonl"
    line = {"benchmark": benchmark, "date": today, "device": device,
            "torch": torch.__version__, **figures}  # fmt: skip
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")
