"""Answers that go on from kept keys and values, and the same without: whether they are equal, what
is reused, and what it saves.

Questions about documents that are kept beside their index, and a conversation of five turns about
one passage, with nothing kept.

    python benchmarks/prefill_answers.py --documents FOLDER [--model MODEL] [--questions N]
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from measuring import record
from prefill_reuse import both

from gem_rag import Conversation, Index

MOST_DISK = 8 << 30


def main(
    documents: Annotated[Path, typer.Option(help="what to index")],
    model: str = "gem-smollm2-135m",
    questions: int = 200,
    seconds: Annotated[int, typer.Option(help="after which no more questions are asked")] = 10**6,
) -> None:
    """Record the questions, and each turn."""
    with both(model) as (gem, plain), tempfile.TemporaryDirectory() as work:
        index = Index.open(Path(work) / "index", gem)
        index.sync([documents], progress=True)
        other = Index.open(Path(work) / "index", plain)
        converse(model, index, other)
        kept = index.keep_prefill(len(index.sources), max_bytes=MOST_DISK)
        ask_all(model, index, other, own_questions(index, questions, 1), seconds, kept.bytes)


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
    record("prefill_answers", {
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
        record("prefill_answers", {
            "row": f"turn {number}", "base": model, "chunks": len(index),
            "questions": 1, "equal": int(turn.text == wanted.text),
            "prompt_tokens": turn.answer.usage["prompt"],
            "reused_tokens": turn.answer.usage["reused"],
            "with_seconds": round(turn.answer.timings["generate"], 2),
            "without_seconds": round(wanted.answer.timings["generate"], 2),
        })  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
