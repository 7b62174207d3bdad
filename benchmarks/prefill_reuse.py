"""What kept keys and values save: seconds to the first token of an answer, with reuse and without.

A passage of 250, 1,000 and 4,000 tokens (random words) after the head of an answer's prompt: read
without reuse, from memory, and from disk, one after another in turn; medians. Then questions about
documents that are kept beside their index, answered with reuse and without; and a conversation of
five turns about one passage.

    python benchmarks/prefill_reuse.py --part first-token --shape 135M --folder build/smollm2
    python benchmarks/prefill_reuse.py --part first-token --shape 0.5B
    python benchmarks/prefill_reuse.py --part questions --documents FOLDER [--model MODEL]
    python benchmarks/prefill_reuse.py --part conversation --documents FOLDER [--model MODEL]

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
from typing import Annotated, Any, Literal

import typer
from measuring import DTYPE, SHAPES, matrix_product_rate, random_checkpoint, record, timed

import gem_rag
from gem_rag import Conversation, Index
from gem_rag.engines.prefix_store import LEAST_TOKENS, PrefixStore
from gem_rag.model import Gem

Part = Literal["first-token", "questions", "conversation"]
CONTEXT = 8192
MOST_DISK = 8 << 30
QUESTION = "\n\nQuestion: What does the passage say of it?\nAnswer:"


def main(
    part: Part = "first-token",
    shape: str = "135M",
    folder: Annotated[Path | None, typer.Option(help="a model of this shape")] = None,
    length: Annotated[list[int], typer.Option(help="tokens of the passage")] = [250, 1000, 4000],  # noqa: B006
    rounds: int = 3,
    model: str = "gem-smollm2-135m",
    documents: Annotated[Path | None, typer.Option(help="what to index")] = None,
    count: Annotated[int, typer.Option(help="questions")] = 200,
    seconds: Annotated[int, typer.Option(help="after which no more questions are asked")] = 10**6,
) -> None:
    """Record one part."""
    if part == "first-token":
        measure_first_tokens(shape, folder, length, rounds)
        return
    if documents is None:
        raise SystemExit("--documents names what to index")
    with both(model) as (gem, plain), tempfile.TemporaryDirectory() as work:
        index = Index.open(Path(work) / "index", gem)
        index.sync([documents], progress=True)
        other = Index.open(Path(work) / "index", plain)
        if part == "questions":
            kept = index.keep_prefill(len(index.sources), max_bytes=MOST_DISK)
            ask_all(model, index, other, own_questions(index, count, 1), seconds, kept.bytes)
        else:
            converse(model, index, other)


# -- the first token -----------------------------------------------------------------------------


def measure_first_tokens(
    shape: str, folder: Path | None, lengths: Sequence[int], rounds: int
) -> None:
    with tempfile.TemporaryDirectory() as work:
        path = folder or random_checkpoint(Path(work), SHAPES[shape], 1, 0, CONTEXT)
        with both(path) as (gem, plain):
            for length in lengths:
                figures = first_token(gem, plain, length, rounds, Path(work) / str(length))
                case = {"shape": shape, "tokens_each": length, "rounds": rounds}
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


# -- answers -------------------------------------------------------------------------------------


def ask_all(
    model: str, index: Index, other: Index, questions: list[str], seconds: int, kept: int
) -> None:
    """Answer questions with reuse and without, and count the answers that are equal."""
    same = asked = reused = prompt = 0
    times: dict[str, list[float]] = {"with": [], "without": []}
    for one in (index, other):  # what is imported and compiled once counts for neither
        one.ask(questions[-1], 1, max_tokens=1)
    start = time.monotonic()
    for question in questions:
        if time.monotonic() - start > seconds:
            break
        found, wanted = (one.ask(question, 1, max_tokens=24) for one in (index, other))
        asked += 1
        same += (found.text, found.citations) == (wanted.text, wanted.citations)
        reused += found.usage["reused"]
        prompt += found.usage["prompt"]
        times["with"].append(found.timings["generate"])
        times["without"].append(wanted.timings["generate"])
    record("prefill_reuse", {
        "row": "questions", "base": model, "chunks": len(index), "questions": asked,
        "equal": same, "prompt_tokens": prompt, "reused_tokens": reused,
        "kept_megabytes": round(kept / 1e6),
        **{f"{way}_seconds": round(sum(taken), 2) for way, taken in times.items()},
    })  # fmt: skip


def own_questions(index: Index, chunks: int, each: int) -> list[str]:
    """Questions about so many chunks, each in the first and some other of the chunk's own words."""
    passages: list[str] = index._storage.read(
        lambda commit: [p for source in commit.sources() for p in commit.passages(source)]
    )
    long = [p for p in passages if len(p.split()) > 8 * each + 8]
    chosen = random.Random(0).sample(long, min(chunks, len(long)))
    return [
        f"{' '.join(p.split()[:8])}: what about {' '.join(p.split()[start : start + 8])}?"
        for p in chosen
        for start in range(8, 8 * each + 8, 8)
    ]


def converse(model: str, index: Index, other: Index) -> None:
    """Five turns about one passage, each a conversation's next."""
    questions = own_questions(index, 1, 5)
    with_reuse, without = (Conversation(one, 1, max_tokens=24) for one in (index, other))
    for number, question in enumerate(questions, start=1):
        turn, wanted = with_reuse.ask(question), without.ask(question)
        record("prefill_reuse", {
            "row": f"turn {number}", "base": model, "chunks": len(index),
            "questions": 1, "equal": int(turn.text == wanted.text),
            "prompt_tokens": turn.answer.usage["prompt"],
            "reused_tokens": turn.answer.usage["reused"],
            "with_seconds": round(turn.answer.timings["generate"], 2),
            "without_seconds": round(wanted.answer.timings["generate"], 2),
        })  # fmt: skip


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
