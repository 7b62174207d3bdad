"""GEM-trains SmolLM2-135M-Instruct in two stages: `python -m gem_smollm2 STAGE`.

    pairs   sentences, manuals, descriptions of packages and glosses, beside gem-tiny's pairs
    train   the special token, by recipe.yaml; the language model stays as it is

`pairs` reads what gem-tiny's stages `corpus`, `questions` and `pairs` wrote to the folder `--work`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from gem_tiny.command_line import run_stage
from gem_tiny.stages.options import WORK, Resume, Seed, Settings, Steps, Work
from gem_tiny.texts import Text, load_texts

from gem_rag.core.config import AnswerStyle, GemConfig
from gem_rag.pairs.make import make_pairs
from gem_rag.pairs.pair import write_pairs
from gem_rag.pairs.settings import PairSettings
from gem_rag.training.recipe import parse_change, read_recipe
from gem_rag.training.run import train as run
from gem_smollm2.base import NAME
from gem_smollm2.descriptions import description_pairs
from gem_smollm2.glosses import gloss_pairs
from gem_smollm2.sentences import sentence_pairs

READS = 512  # tokens of a text
# How it answers, chosen by measuring (README.md).
STYLE: AnswerStyle = "sentences"
MARGIN = 0.05
MIN_SCORE = 0.3

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.command()
def pairs(
    wordnet: Annotated[Path, typer.Option(help="folder of WordNet's data files")],
    manuals: Annotated[Path, typer.Option(help="folder of unpacked manuals (manuals.txt)")],
    lists: Annotated[Path, typer.Option(help="folder of apt's lists, with Translation-en")],
    work: Work = WORK,
    seed: Seed = 0,
) -> None:
    """Write pairs of sentences, manuals, packages' descriptions and glosses."""
    folder = work / "pairs"
    write_pairs(folder / "sentences.jsonl", sentence_pairs(_training_texts(work), seed))
    write_pairs(folder / "glosses.jsonl", gloss_pairs(wordnet, negatives=1, seed=seed))
    write_pairs(folder / "descriptions.jsonl", description_pairs(lists))
    # What stands in manuals itself: titles, headings and first sentences find the text below.
    settings = PairSettings(questions=0, negatives=0, search="bm25")
    (folder / "manuals.jsonl").unlink(missing_ok=True)
    make_pairs([manuals], "gem-tiny", folder / "manuals.jsonl", settings, progress=True)


def _training_texts(work: Path) -> list[Text]:
    return [text for text in load_texts(work / "corpus.jsonl") if not text.held_out]


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="where the adapter goes")],
    base: Annotated[
        str, typer.Option(help="a folder, GGUF file or hub name; this one may be installed")
    ] = NAME,
    teacher: Annotated[
        str | None,
        typer.Option(help="align vectors with a sentence-transformers model's too; default none"),
    ] = None,
    work: Work = WORK,
    steps: Steps = None,
    settings: Settings = None,
    resume: Resume = False,
) -> None:
    """Train the special token; nothing else changes."""
    changes = dict(map(parse_change, settings or ()))
    if teacher:
        names = ("teacher", "teacher_weight", "align")
        values = (teacher, 0.0, 1.0)
        changes |= {f"contrastive.{n}": v for n, v in zip(names, values, strict=True)}
    recipe = read_recipe(str(Path(__file__).with_name("recipe.yaml")), changes)
    folder = work / "pairs"
    recipe = recipe.with_data([f"{name}={folder / name}.jsonl" for name in recipe.data])
    held_out = {
        name: dataclasses.replace(recipe.data[name], path=str(folder / f"held-out-{name}.jsonl"))
        for name in ("summaries", "asked")
    }
    evaluation = dataclasses.replace(recipe.evaluation, data=held_out, max_rows=1500)
    recipe = dataclasses.replace(recipe, evaluation=evaluation)
    run(recipe.scaled(steps) if steps else recipe, base, out, resume=resume, progress=True)
    finish(out)


def finish(folder: Path) -> None:
    """Set how a trained adapter reads and answers: longer texts than it was trained on, which cost
    most of the time, and in whole sentences."""
    config = GemConfig.read(folder)
    assert config is not None
    dataclasses.replace(
        config, max_length=READS, answer_style=STYLE, answer_margin=MARGIN,
        answer_min_score=MIN_SCORE,
    ).save(folder)  # fmt: skip


def main() -> None:
    """Run a stage."""
    run_stage(app, "gem-smollm2")


if __name__ == "__main__":
    main()
