"""Command-line options that several stages share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WORK = Path("build/gem-tiny")
Work = Annotated[Path, typer.Option(help="folder of the data")]
Seed = Annotated[int, typer.Option(help="seed of all random choices")]
ModelFolder = Annotated[Path | None, typer.Option(help="where the model goes")]
Base = Annotated[Path | None, typer.Option(help="language model to start from")]
BatchTokens = Annotated[int, typer.Option(help="tokens per step")]
Decay = Annotated[float, typer.Option(help="share of the steps in which the rate decays")]
StopAfter = Annotated[int | None, typer.Option(help="stop after this step, to resume later")]
Steps = Annotated[int | None, typer.Option(help="overrides the recipe's")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, overrides the recipe's")
]
Resume = Annotated[bool, typer.Option("--resume", help="resume an interrupted run")]
Compiled = Annotated[bool, typer.Option(help="use torch.compile")]
