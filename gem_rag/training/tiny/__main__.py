"""Makes gem-tiny's special tokens: `python -m gem_rag.training.tiny --base FOLDER --out FOLDER`.

The base language model stays as it is. Its special tokens' rows and adapters are trained by
contrast on docstrings, whose summary line must find the rest, by the bundled recipe `special`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from gem_rag.config import GemConfig
from gem_rag.training.recipe import read_recipe
from gem_rag.training.run import train
from gem_rag.training.tiny.corpus import cached_pairs, held_out, training_texts, write_rows

# The forms that the base was trained on.
CHAT_TEMPLATE = """\
{% for message in messages -%}
{% if message.role == "system" %}Context:
{{ message.content }}

{% elif message.role == "user" %}Question: {{ message.content }}
Answer:{% else %} {{ message.content }}

{% endif %}{% endfor %}"""
ANSWER_PROMPT = "Context:\n{passages}\n\nQuestion: {question}\nAnswer:"
QUERY_TOKENS, DOCUMENT_TOKENS = 64, 128
CONTEXT = 256  # the base was trained on sequences of this length, and knows no position beyond


def main(
    base: Annotated[Path, typer.Option(help="the language model to start from")],
    out: Annotated[Path, typer.Option(help="where the checkpoint goes")],
    packages: Annotated[Path | None, typer.Option(help="a folder of installed packages")] = None,
    work: Annotated[Path, typer.Option(help="where the data goes")] = Path("build/gem-tiny"),
    steps: int = 600,
    batch: int = 256,
    resume: Annotated[bool, typer.Option("--resume", help="go on after an interruption")] = False,
) -> None:
    """Write the pairs, train, report on 1,500 held-out ones."""
    corpus = cached_pairs(work / "pairs.jsonl", packages)
    texts = training_texts(corpus)
    kept = [pair for pair in corpus if held_out(pair.module)][:1500]
    write_rows(work / "train.jsonl", ({"query": q, "document": d} for q, d in texts))
    write_rows(work / "held-out.jsonl", ({"query": p.summary, "document": p.rest} for p in kept))
    recipe = read_recipe("special", {
        "data.pairs.path": str(work / "train.jsonl"),
        "evaluation.data.pairs": {"path": str(work / "held-out.jsonl"), "kind": "pairs"},
        "evaluation.at_most": len(kept),
        "query_length": QUERY_TOKENS,
        "max_length": DOCUMENT_TOKENS,
        "schedule.batch": batch,
    })  # fmt: skip
    train(recipe.scaled(steps), prepared(base, work / base.name), out, resume=resume, progress=True)


def prepared(base: Path, copy: Path) -> Path:
    """A copy of the base that says how long a text it can read, and how to talk with it."""
    shutil.copytree(base, copy, dirs_exist_ok=True, copy_function=shutil.copyfile)
    file = copy / "config.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**state, "max_position_embeddings": CONTEXT}, indent=2) + "\n")
    (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    GemConfig(answer_prompt=ANSWER_PROMPT, answer_style="quote").save(copy)
    return copy


if __name__ == "__main__":
    typer.run(main)
