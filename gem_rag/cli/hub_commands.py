"""`gem-rag push` and `gem-rag pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gem_rag._utils.progress import silence_libraries


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    repo: Annotated[str, typer.Argument(help="Its name on the hub, OWNER/NAME.")],
    base: Annotated[
        str | None, typer.Option(help="Hub name of the base, if it was a local folder.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Keep it private.")] = False,
) -> None:
    """Upload a model with its card to the hub."""
    from gem_rag.interop.hub import push as upload

    silence_libraries()
    print(f"pushed {upload(folder, repo, base=base, private=private)}")


def pull(
    repo: Annotated[str, typer.Argument(help="A model's name on the hub, OWNER/NAME.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new folder; default: the hub's cache.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
) -> None:
    """Download a model from the hub."""
    from gem_rag.interop.hub import pull as download

    silence_libraries()
    print(f"wrote {download(repo, out, revision=revision)}")
