"""Shared by the commands: options, opening models and indexes, and printing.

Heavy imports happen inside functions, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gem_rag._utils.progress import silence_libraries
from gem_rag._utils.terminal import escape_controls, escape_controls_in_json, shorten
from gem_rag.errors import InputError

if TYPE_CHECKING:
    from gem_rag.model import Gem
    from gem_rag.rag.index import Index
    from gem_rag.rag.search import SearchOptions

IndexOption = Annotated[Path, typer.Option("--index", "-i", help="Folder of the index.")]
ModelNameOption = Annotated[
    str, typer.Option("--model", "-m", help="Installed model, hub name or folder.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Installed model, hub name or folder; default: the index's.",
    ),
]
HitsOption = Annotated[int, typer.Option("-k", "--k", min=1, help="Passages to retrieve.")]
RankingOption = Annotated[
    str, typer.Option(help="vectors, words (BM25), or hybrid (both, their scores fused).")
]
SourcesOption = Annotated[
    list[str] | None,
    typer.Option("--source", help="Only documents that match this pattern, as in .gitignore."),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(help="Only documents with such metadata: type=pdf, modified>=2026-01."),
]
MinScoreOption = Annotated[float | None, typer.Option(help="Minimum cosine of a passage.")]
DiversityOption = Annotated[
    float, typer.Option(help="From 0 to 1: how strongly to avoid similar passages.")
]
RerankedOption = Annotated[
    int,
    typer.Option("--rerank", min=0, help="Number of top passages that the model reorders."),
]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 for the likeliest answer.")]
StyleOption = Annotated[
    str | None,
    typer.Option(
        help="free; checked (supported sentences only); quote or quotes (verbatim, from one or "
        "up to three passages); sentences (whole ones, chosen by their embeddings); default: the "
        "model's own."
    ),
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=2.0,
        help="Ignore passages this far below the best cosine; default: the model's own.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
DEFAULT_INDEX = Path("gem-index")
DEFAULT_MODEL = "gem-tiny"
DEFAULT_RANKING = "hybrid"


def open_index(folder: Path, model: str | None) -> Index:
    """An existing index, opened with a model or the one that it was made with."""
    from gem_rag.rag.index import Index
    from gem_rag.rag.manifest import Manifest

    folder = folder.expanduser()
    own_model = Manifest.read_existing(folder).model
    return Index.open(folder, load_model(model or own_model), create=False)


def search_options(
    ranking: str,
    source: list[str] | None,
    where: list[str] | None,
    min_score: float | None,
    diversity: float,
    rerank: int,
) -> SearchOptions:
    """What the options of a command say of a search."""
    from gem_rag.rag.conditions import parse_conditions

    return {
        "ranking": ranking,  # type: ignore[typeddict-item]
        "sources": source or (),
        "where": parse_conditions(where or ()),
        "min_score": min_score,
        "diversity": diversity,
        "reranked": rerank,
    }


def load_model(model: str, engine: Any = "auto") -> Gem:
    """A model, without other libraries' progress bars and notices."""
    from gem_rag.loading import load

    silence_libraries()
    return load(model, engine=engine)


def require_extra(extra: str, *modules: str) -> None:
    """Raise InputError naming the extra if one of its modules is not installed."""
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InputError(f"this needs {', '.join(missing)}: pip install 'gem-rag[{extra}]'")


def shows_progress(as_json: bool) -> bool:
    """Whether a command draws progress bars: on a terminal, unless a script reads its output."""
    return sys.stderr.isatty() and not as_json


def print_result(value: Any, as_json: bool, text: str = "") -> None:
    """Print a result as JSON, or else as text."""
    if as_json:
        print(escape_controls_in_json(json.dumps(value, ensure_ascii=False, indent=2)))
    else:
        print_text(text)


def print_text(text: str, end: str = "\n") -> None:
    """Print a text; control characters from documents and models are escaped."""
    print(escape_controls(text), end=end, flush=not end)


def locate(source: str, place: str, span: tuple[int, int]) -> str:
    """A place in a document: its characters, and what a reader of the file looks for."""
    return f"{source}:{span[0]}-{span[1]}{place and f' ({place})'}"


def print_excerpt(text: str, limit: int) -> None:
    """Print the beginning of a text, indented and without empty lines."""
    lines = (line.strip() for line in shorten(text, limit).splitlines())
    print_text("\n".join(f"    {line}" for line in lines if line))


def print_notice(message: object) -> None:
    """Print one line on stderr."""
    print("gem-rag:", escape_controls(" ".join(str(message).split())), file=sys.stderr)
