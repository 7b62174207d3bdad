"""What commands share: options, opening models and indexes, printing.

Heavy imports happen inside functions, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gem_rag._utils.progress import quiet
from gem_rag.errors import InputError

if TYPE_CHECKING:
    from gem_rag.model import Gem
    from gem_rag.rag.index import Index

IndexOption = Annotated[Path, typer.Option("--index", "-i", help="Folder of the index.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Bundled or hub name, or folder; default the index's own."),
]
HitsOption = Annotated[int, typer.Option("-k", min=1, help="How many passages to retrieve.")]
MarginOption = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=2.0,
        help="Passages this far below the best one's cosine are not read; default the model's own.",
    ),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
DEFAULT_INDEX = Path("gem-index")
DEFAULT_MODEL = "gem-tiny"


def open_index(folder: Path, model: str | None) -> Index:
    from gem_rag.rag.index import Index
    from gem_rag.rag.manifest import Manifest

    made_with = Manifest.existing(folder).model
    return Index.open(folder, load_model(model or made_with), create=False)


def load_model(model: str, engine: Any = "auto") -> Gem:
    """A model, with progress and warnings left to us."""
    from gem_rag.model import load

    quiet()
    return load(model, engine=engine)


def needs(extra: str, *modules: str) -> None:
    """Raises InputError naming the extra if one of its modules is not installed."""
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InputError(f"this needs {', '.join(missing)}: pip install 'gem-rag[{extra}]'")


def show(value: Any, as_json: bool, text: str = "") -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2) if as_json else text)


def say(message: object) -> None:
    """One line on stderr."""
    print("gem-rag:", " ".join(str(message).split()), file=sys.stderr)
