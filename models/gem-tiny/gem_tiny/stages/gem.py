"""Stage `gem`: training of the special token, which leaves the language model as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from gem_rag import GemConfig
from gem_tiny.prompts import ANSWER_MARGIN, ANSWER_PROMPT, CHAT_TEMPLATE
from gem_tiny.stages.options import WORK, Base, Resume, Settings, Steps, Work
from gem_tiny.stages.work_folder import require


def gem(
    out: Annotated[Path, typer.Option(help="where the checkpoint goes")],
    base: Base = None,
    work: Work = WORK,
    steps: Steps = None,
    settings: Settings = None,
    resume: Resume = False,
) -> None:
    """Train the special token by gem.yaml; report on 1,500 held-out pairs of each kind."""
    from gem_rag.training.recipe import parse_change, read_recipe
    from gem_rag.training.run import train

    changes: dict[str, Any] = dict(map(parse_change, settings or ()))
    for name in ("summaries", "titles", "asked"):
        changes[f"data.{name}.path"] = str(require(work / "pairs" / f"{name}.jsonl", "pairs"))
    for name in ("summaries", "asked"):
        changes[f"evaluation.data.{name}.path"] = str(work / "pairs" / f"held-out-{name}.jsonl")
    recipe = read_recipe(Path(__file__).parents[1] / "gem.yaml", changes)
    recipe = recipe.scaled(steps) if steps else recipe
    base = base or require(work / "answering-base", "answering")
    prepare_base(base, work / "prepared")
    train(recipe, work / "prepared", out, resume=resume, progress=True, full=True)


def prepare_base(base: Path, copy: Path) -> None:
    """Copy a language model, with the chat template and the settings for quoted answers.

    Args:
        base: Folder of the language model.
        copy: Where the copy goes.
    """
    shutil.copytree(base, copy, dirs_exist_ok=True, copy_function=shutil.copyfile)
    (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    config = GemConfig(
        answer_prompt=ANSWER_PROMPT, answer_style="quote", answer_margin=ANSWER_MARGIN
    )
    config.save(copy)
