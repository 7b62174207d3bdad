"""Running a model's stages from the command line."""

from __future__ import annotations

import typer
from rich.console import Console

from gem_rag.errors import GemError


def run_stage(app: typer.Typer, name: str) -> None:
    """Run the stage that the arguments name; errors are shown as one line after the name."""
    try:
        app()
    except GemError as error:
        Console(stderr=True).print(f"{name}: {error}", style="red", highlight=False)
        raise SystemExit(error.exit_code) from None
