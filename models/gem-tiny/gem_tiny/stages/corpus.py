"""Stage `corpus`: the texts of the standard library, packages and documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gem_tiny.stages.options import WORK, Work
from gem_tiny.stages.work_folder import show


def corpus(
    work: Work = WORK,
    packages: Annotated[Path | None, typer.Option(help="folder of installed packages")] = None,
    documentation: Annotated[
        Path | None, typer.Option(help="folder of unpacked documentation packages")
    ] = None,
) -> None:
    """Write the texts for training and evaluation, with counts."""
    from gem_tiny.texts import write_corpus

    show(write_corpus(work / "corpus.jsonl", packages, documentation))
