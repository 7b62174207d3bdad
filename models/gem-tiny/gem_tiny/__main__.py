"""Makes gem-tiny, in stages: `python -m gem_tiny STAGE`, in this order:

    corpus          texts of the standard library, packages and documentation
    tokenizer       byte-level BPE, trained on them
    questions       rows of grounded answering, to train on and held out
    calls           rows of tool calls, and of talk
    sequences       texts and rows as tokens
    language-model  from nothing, on documents and half of the rows; goes on from its last state
    answering       the language model, on the other rows; goes on from its last state
    pairs           with hard negatives
    gem             the special token, the language model as it is
    measure         on what is held out

Every stage reads what the one before wrote to the folder `--work`, and is the same for the same
seed.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gem_rag.core.config import GemConfig
from gem_rag.errors import GemError, InputError
from gem_rag.evaluation.scores import write_whole
from gem_rag.training.recipe import parse_change, read_recipe
from gem_rag.training.run import train
from gem_tiny.corpus import (
    Text,
    load_texts,
    write_corpus,
    write_rows,
)
from gem_tiny.prompts import (
    ANSWER_MARGIN,
    ANSWER_PROMPT,
    CHAT_TEMPLATE,
    completion,
    prompt,
)

if TYPE_CHECKING:
    from gem_tiny.language_model import Plan
    from gem_tiny.sequences import Mixture, Sequences

CONTEXT = 1024
TEXT_TOKENS = 512  # of a sequence of documents, which are shorter; its attention costs half
END, PAD = 1, 2  # of the tokenizer's special tokens
SPARE = 16  # rows of the vocabulary that stay free
ANSWER_WEIGHT = 8  # of an answer's token in the loss, beside 1 of any other

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Work = Annotated[Path, typer.Option(help="where the data goes")]
Seed = Annotated[int, typer.Option(help="another one gives other draws")]
WORK = Path("build/gem-tiny")
_Row = tuple[list[int], list[int]]  # token ids of a prompt and of what is written behind it


@app.command()
def corpus(
    work: Work = WORK,
    packages: Annotated[Path | None, typer.Option(help="a folder of installed packages")] = None,
    documentation: Annotated[
        Path | None, typer.Option(help="a folder of unpacked documentation packages")
    ] = None,
) -> None:
    """Write the texts to learn from and to measure on, with counts."""
    _show(write_corpus(work / "corpus.jsonl", packages, documentation))


@app.command()
def tokenizer(work: Work = WORK, size: int = 8192) -> None:
    """Train the tokenizer on the texts that are not held out."""
    from gem_tiny.tokenizer_training import train_tokenizer

    texts = (text.document for text in load_texts(work / "corpus.jsonl") if not text.held_out)
    train_tokenizer(texts, size - SPARE, CONTEXT).save_pretrained(work / "tokenizer")


@app.command()
def questions(
    work: Work = WORK, most: int = 120_000, held_out_rows: int = 1000, seed: Seed = 0
) -> None:
    """Write question rows, and held-out ones of four passages each."""
    from gem_tiny.question_rows import count_rows, make_rows

    texts = load_texts(work / "corpus.jsonl")
    for name, out, count, passages in (
        ("questions", False, most, None),
        ("held-out-questions", True, held_out_rows, 4),
    ):
        chosen = [text for text in texts if text.held_out == out]
        rows = list(make_rows(chosen, seed, count, passages))
        write_rows(work / f"{name}.jsonl", map(asdict, rows))
        _show({name: count_rows(rows)})


@app.command()
def calls(work: Work = WORK, most: int = 24_000, most_talk: int = 3000, seed: Seed = 0) -> None:
    """Write rows of tool calls, and of talk."""
    from gem_tiny.tool_call_rows import make_calls, make_talk

    asked = (row["question"] for row in _lines(work / "questions.jsonl", "questions"))
    texts = load_texts(work / "corpus.jsonl")
    for name, rows in (
        ("calls", make_calls(texts, seed, most)),
        ("talk", make_talk(asked, seed, most_talk)),
    ):
        write_rows(work / f"{name}.jsonl", ({"messages": m, "completion": c} for m, c in rows))


@app.command()
def sequences(work: Work = WORK) -> None:
    """Write documents, rows and held-out docstrings as sequences of tokens, with counts.

    Half of the question rows and of the calls are for the stage `language-model`, the others for
    `answering`.
    """
    from gem_tiny.sequences import documents, rows

    tokenizer = _tokenizer(work)
    encode = tokenizer.backend_tokenizer.encode_batch_fast
    conversation = partial(
        tokenizer.apply_chat_template, chat_template=CHAT_TEMPLATE, tokenize=False
    )
    texts = load_texts(work / "corpus.jsonl")
    tokens: Counter[str] = Counter()
    characters: Counter[str] = Counter()

    def encoded(chosen: list[Text]) -> Iterator[list[int]]:
        for part in batched(chosen, 1000):
            for text, ids in zip(part, encode([text.document for text in part]), strict=True):
                name = "held out" if text.held_out else text.source
                tokens[name] += len(ids)
                characters[name] += len(text.document.encode())
                yield ids.ids

    def encoded_rows(name: str, pair: Callable[[Any], tuple[str, str]]) -> Iterator[_Row]:
        lines = _made(work / f"{name}.jsonl", name).open(encoding="utf-8")
        for part in batched(map(pair, map(json.loads, lines)), 1000):
            asked, answers = (encode(list(texts)) for texts in zip(*part, strict=True))
            tokens[name] += sum(map(len, (*asked, *answers)))
            yield from zip((a.ids for a in asked), (a.ids for a in answers), strict=True)

    def question(row: Any) -> tuple[str, str]:
        answer = completion(row["answer"], row["number"])
        return prompt(row["passages"], row["question"]), answer

    def call(row: Any) -> tuple[str, str]:
        return conversation(row["messages"]), row["completion"]

    learnt = documents(encoded([t for t in texts if not t.held_out]), TEXT_TOKENS, END)
    kept = documents(encoded([t for t in texts if t.held_out][:2000]), CONTEXT, END)
    asked, called = encoded_rows("questions", question), encoded_rows("calls", call)
    early = chain(
        islice(asked, _count(work, "questions") // 2), islice(called, _count(work, "calls") // 2)
    )
    packed = partial(rows, length=CONTEXT, end=END, pad=PAD, weight=ANSWER_WEIGHT)
    learnt.save(work / "documents.npz")
    kept.save(work / "held-out.npz")
    packed(early).save(work / "rows.npz")
    packed(chain(asked, called, encoded_rows("talk", call))).save(work / "more-rows.npz")
    counts = {"tokens": dict(tokens.most_common()), "bytes": dict(characters.most_common())}
    (work / "sequences.json").write_text(json.dumps(counts, indent=2) + "\n")
    _show(counts)


Out = Annotated[Path | None, typer.Option(help="where the model goes")]
Batch = Annotated[int, typer.Option(help="tokens a step")]
Decay = Annotated[float, typer.Option(help="part of the steps in which the rate falls")]
StopAfter = Annotated[int | None, typer.Option(help="leave off after this step")]
Compiled = Annotated[bool, typer.Option(help="through torch.compile")]


@app.command()
def language_model(
    work: Work = WORK,
    out: Out = None,
    steps: int = 1800,
    batch: Batch = 16 * CONTEXT,
    decay: Decay = 0.4,
    stop_after: StopAfter = None,
    compiled: Compiled = True,
    seed: Seed = 0,
) -> None:
    """Train the language model, or go on from its last state, and write it in bfloat16.

    Until the decay begins, a run may be given more steps, or fewer.
    """
    from gem_tiny.language_model import Plan
    from gem_tiny.sequences import Mixture

    plan = Plan(steps=steps, decay=decay, seed=seed)
    mixture = Mixture(
        _sequences(work, "documents"), _sequences(work, "rows"), seed, batch,
        row_share=0.25, decay_row_share=0.75,
    )  # fmt: skip
    _trained(work, "language-model", out or work / "base", plan, mixture, compiled, stop_after)


@app.command()
def answering(
    work: Work = WORK,
    out: Out = None,
    base: Annotated[Path | None, typer.Option(help="the language model to start from")] = None,
    steps: int = 1600,
    batch: Batch = 16 * CONTEXT,
    decay: Decay = 0.8,
    stop_after: StopAfter = None,
    compiled: Compiled = True,
    seed: Seed = 1,
) -> None:
    """Train the language model on, mostly to answer from passages and to call tools."""
    from gem_tiny.language_model import Plan
    from gem_tiny.sequences import Mixture

    start = _made(base or work / "base", "language-model")
    plan = Plan(steps=steps, decay=decay, seed=seed, matrix_rate=0.003, rate=2e-3)
    mixture = Mixture(
        _sequences(work, "documents"), _sequences(work, "more-rows"), seed, batch,
        row_share=0.85, decay_row_share=0.85,
    )  # fmt: skip
    out = out or work / "answering-base"
    _trained(work, "answering", out, plan, mixture, compiled, stop_after, start)


def _trained(
    work: Path,
    stage: str,
    out: Path,
    plan: Plan,
    mixture: Mixture,
    compiled: bool,
    stop_after: int | None,
    start: Path | None = None,
) -> None:
    """Train, or go on, in the folder of the stage; write the model, and say what it is worth."""
    from gem_tiny.language_model import Shape, bits_per_token, train

    model = train(
        Shape(), plan, mixture, work / stage, compiled=compiled, progress=True,
        stop_after=stop_after, start=start,
    )  # fmt: skip
    counts = json.loads((work / "sequences.json").read_text())
    bits = bits_per_token(model, _sequences(work, "held-out"))
    per_byte = bits * counts["tokens"]["held out"] / counts["bytes"]["held out"]
    _show({"held-out bits per token": bits, "held-out bits per byte": per_byte})
    model.bfloat16().save_pretrained(out)
    _tokenizer(work).save_pretrained(out)
    GemConfig(answer_prompt=ANSWER_PROMPT).save(out)


@app.command()
def pairs(work: Work = WORK) -> None:
    """Write pairs with hard negatives, and held-out pairs to measure on."""
    from gem_tiny.pairs import asked, mined, summaries, titles
    from gem_tiny.question_rows import Row

    texts = load_texts(work / "corpus.jsonl")
    learnt = [text for text in texts if not text.held_out]
    for name, found in (("summaries", summaries(learnt)), ("titles", titles(learnt))):
        write_rows(work / "pairs" / f"{name}.jsonl", mined(list(found)))
    for name, file in (("asked", "questions"), ("held-out-asked", "held-out-questions")):
        rows = (Row(**row) for row in _lines(work / f"{file}.jsonl", "questions"))
        write_rows(work / "pairs" / f"{name}.jsonl", asked(rows))
    kept = summaries(text for text in texts if text.held_out)
    held = ({"query": query, "document": document} for query, document in kept)
    write_rows(work / "pairs" / "held-out-summaries.jsonl", held)


@app.command()
def gem(
    out: Annotated[Path, typer.Option(help="where the checkpoint goes")],
    base: Annotated[Path | None, typer.Option(help="the language model to start from")] = None,
    work: Work = WORK,
    steps: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe's")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on after an interruption")] = False,
) -> None:
    """Train special tokens on the pairs (gem.yaml); report on 1,500 of each held-out kind."""
    changes: dict[str, Any] = dict(map(parse_change, settings or ()))
    for name in ("summaries", "titles", "asked"):
        changes[f"data.{name}.path"] = str(_made(work / "pairs" / f"{name}.jsonl", "pairs"))
    for name in ("summaries", "asked"):
        changes[f"evaluation.data.{name}.path"] = str(work / "pairs" / f"held-out-{name}.jsonl")
    recipe = read_recipe(Path(__file__).with_name("gem.yaml"), changes)
    base = base or _made(work / "answering-base", "answering")
    with_prompts = prepared(base, work / "prepared")
    recipe = recipe.scaled(steps) if steps else recipe
    train(recipe, with_prompts, out, resume=resume, progress=True)


@app.command()
def measure(
    model: Annotated[str, typer.Option(help="the checkpoint")] = "gem-tiny",
    work: Work = WORK,
    base: Annotated[Path | None, typer.Option(help="the language model it was made of")] = None,
    beside: Annotated[str | None, typer.Option(help="a sentence-transformers folder")] = None,
    beside_lm: Annotated[Path | None, typer.Option(help="another language model")] = None,
    out: Annotated[Path | None, typer.Option(help="a folder for figures and answers")] = None,
    count: Annotated[int, typer.Option(help="at most so many of everything")] = 1500,
) -> None:
    """Measure on held-out texts; write figures.json and every answer."""
    from gem_tiny.measure import HeldOut, everything
    from gem_tiny.question_rows import Row

    texts = [text for text in load_texts(work / "corpus.jsonl") if text.held_out]
    pairs = _lines(work / "pairs" / "held-out-summaries.jsonl", "pairs")
    rows = _lines(work / "held-out-questions.jsonl", "questions")
    held_out = HeldOut(
        texts, [(p["query"], p["document"]) for p in pairs], [Row(**row) for row in rows]
    )
    out = out or work / "measured"
    found = everything(
        model, held_out, out, base=base, beside=beside, beside_lm=beside_lm, count=count
    )
    write_whole(out / "figures.json", json.dumps(found, indent=2, default=asdict) + "\n")
    print((out / "figures.json").read_text())


def prepared(base: Path, copy: Path) -> Path:
    """A copy of the base that says how to talk with it, and that it answers by quoting."""
    shutil.copytree(base, copy, dirs_exist_ok=True, copy_function=shutil.copyfile)
    (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    config = GemConfig(
        answer_prompt=ANSWER_PROMPT, answer_style="quote", answer_margin=ANSWER_MARGIN
    )
    config.save(copy)
    return copy


def _tokenizer(work: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_made(work / "tokenizer", "tokenizer"))


def _sequences(work: Path, name: str) -> Sequences:
    from gem_tiny.sequences import Sequences

    return Sequences.load(_made(work / f"{name}.npz", "sequences"))


def _count(work: Path, name: str) -> int:
    """Rows of a file."""
    with _made(work / f"{name}.jsonl", name).open(encoding="utf-8") as lines:
        return sum(1 for _ in lines)


def _lines(file: Path, stage: str) -> list[Any]:
    return [
        json.loads(line) for line in _made(file, stage).read_text(encoding="utf-8").splitlines()
    ]


def _made(path: Path, stage: str) -> Path:
    """What an earlier stage has written. Raises InputError if it has not."""
    if not path.exists():
        raise InputError(f"there is no {path}: make it with the command `{stage}`")
    return path


def batched(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    """The items, `count` at a time."""
    iterator = iter(items)
    while part := list(islice(iterator, count)):
        yield part


def _show(counts: Any) -> None:
    print(json.dumps(counts, indent=2))


def main() -> None:
    """Run a stage; errors in one line."""
    try:
        app()
    except GemError as error:
        Console(stderr=True).print(f"gem-tiny: {error}", style="red", highlight=False)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
