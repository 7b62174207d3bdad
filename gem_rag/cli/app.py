"""The command line: `gem-rag COMMAND`.

Parses, prints, and turns errors into one line and an exit code (2 for wrong use, 1 for failure).
Heavy imports happen inside commands.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from gem_rag import __version__
from gem_rag._utils.progress import silence_libraries
from gem_rag.cli import chat_command as chat
from gem_rag.cli import eval_commands as evaluate
from gem_rag.cli import hub_commands as hub
from gem_rag.cli import index_command as indexing
from gem_rag.cli import pairs_command as pairs
from gem_rag.cli import serve_command as serving
from gem_rag.cli.common import (
    DEFAULT_INDEX,
    DEFAULT_MODEL,
    DEFAULT_RANKING,
    DiversityOption,
    HitsOption,
    IndexOption,
    JsonOption,
    MarginOption,
    MinScoreOption,
    ModelNameOption,
    ModelOption,
    RankingOption,
    RerankedOption,
    SourcesOption,
    StyleOption,
    TemperatureOption,
    WhereOption,
    locate,
    open_index,
    print_excerpt,
    print_notice,
    print_result,
    print_text,
    require_extra,
    search_options,
    shows_progress,
)
from gem_rag.errors import GemError

app = typer.Typer(
    name="gem-rag",
    help="One set of weights that embeds, retrieves and answers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

app.command()(indexing.index)
app.command()(chat.chat)
app.command()(pairs.make_pairs)
app.command()(indexing.doctor)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    serving.serve
)
app.command()(serving.mcp)
app.command()(hub.push)
app.command()(hub.pull)
app.add_typer(evaluate.app, name="eval")
# typer brings its own copy of click; this is click's UsageError, whichever that is.
_USAGE_ERRORS: Any = typer.BadParameter.__base__
_INTERRUPTED = 130


@app.command()
def search(
    question: Annotated[str, typer.Argument(help="What to look for.")],
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    k: HitsOption = 5,
    ranking: RankingOption = DEFAULT_RANKING,
    source: SourcesOption = None,
    where: WhereOption = None,
    min_score: MinScoreOption = None,
    diversity: DiversityOption = 0.0,
    rerank: RerankedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Print the passages that best match a question."""
    hits = open_index(index, model).search(
        question,
        k,
        **search_options(ranking, source, where, min_score, diversity, rerank),
    )
    if as_json:
        print_result([dataclasses.asdict(hit) for hit in hits], True)
        return
    for number, hit in enumerate(hits, start=1):
        chunk = hit.chunk
        print_text(f"[{number}] {hit.score:.3f}  {locate(chunk.source, hit.place, chunk.span)}")
        print_excerpt(chunk.text, 300)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question to answer.")],
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    k: HitsOption = 5,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens in the answer.")
    ] = None,
    temperature: TemperatureOption = 0.0,
    ranking: RankingOption = DEFAULT_RANKING,
    source: SourcesOption = None,
    where: WhereOption = None,
    min_score: MinScoreOption = None,
    diversity: DiversityOption = 0.0,
    rerank: RerankedOption = 0,
    style: StyleOption = None,
    margin: MarginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from an index, with citations."""
    from gem_rag.rag.answer import check_style

    check_style(style)
    answer = open_index(index, model).ask(
        question,
        k,
        **search_options(ranking, source, where, min_score, diversity, rerank),
        style=style,  # type: ignore[arg-type]
        margin=margin,
        max_tokens=max_tokens,
        temperature=temperature,
    )
    if as_json:
        print_result(dataclasses.asdict(answer), True)
        return
    print_text(f"{answer.text}\n")
    for citation in answer.citations:
        cited = locate(citation.source, citation.place, citation.span)
        print_text(f"[{citation.number}] {cited}")
        print_excerpt(f'"{citation.quote}"', 200)
    for sentence in answer.unsupported:
        print_text(f"left out, for no passage supports it: {sentence}")
    if not answer.citations:
        print("No passage holds these words; what was read:")
        for number, hit in enumerate(answer.hits, start=1):
            print_text(f"[{number}] {locate(hit.chunk.source, hit.place, hit.chunk.span)}")


@app.command()
def train(
    config: Annotated[
        str, typer.Option("--config", "-c", help="A bundled recipe's name, or a YAML file.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="The model to start from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the trained model.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="NAME=PATH of a source; just PATH if there is only one."),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Scale the whole schedule to this many steps.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE overrides the recipe, as in schedule.batch=64."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last saved state.")
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Write a complete model instead of just the adapter."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """GEM-train a model, and report what it gained and what it cost."""
    require_extra(
        "train",
        "accelerate",
        "bm25s",
        "datasets",
        "ir_measures",
        "matplotlib",
        "peft",
        "scipy",
        "yaml",
    )
    from gem_rag.training.recipe import parse_change, read_recipe
    from gem_rag.training.run import train as run

    recipe = read_recipe(config, dict(map(parse_change, change or ()))).with_data(data or [])
    silence_libraries()
    plan = recipe.scaled(max_steps) if max_steps else recipe
    progress = shows_progress(as_json)
    report = run(plan, model, out, resume=resume, progress=progress, full=full)
    if report is not None:  # in distributed training, only the first process has it
        print_result(dataclasses.asdict(report), as_json, report.summary())


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the export.")],
    model: ModelNameOption = DEFAULT_MODEL,
    to: Annotated[
        str,
        typer.Option("--to", help="sentence-transformers, peft, or plain (the model without GEM)."),
    ] = "sentence-transformers",
) -> None:
    """Convert a model to a folder that another library can load."""
    from gem_rag._utils.suggestions import check_choice
    from gem_rag.interop.export import to_sentence_transformers
    from gem_rag.interop.peft_export import to_peft, to_plain

    writers = {
        "sentence-transformers": to_sentence_transformers,
        "peft": to_peft,
        "plain": to_plain,
    }
    check_choice("--to", to, list(writers))
    silence_libraries()
    print(f"wrote {writers[to](model, out)}")


@app.command()
def info(
    index: Annotated[Path | None, typer.Option("--index", "-i", help="An index.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A model.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Load the model, and report how it can be trained."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Describe an index or a model; weights are loaded only with --check."""
    from gem_rag.core.checkpoint import open_checkpoint
    from gem_rag.rag.manifest import Manifest

    if index is not None:
        facts = dataclasses.asdict(Manifest.read_existing(index.expanduser()))
    else:
        checkpoint = open_checkpoint(model or DEFAULT_MODEL)
        facts = {
            "gem-rag": __version__,
            "model": checkpoint.name,
            "path": str(checkpoint.path),
            "fingerprint": checkpoint.fingerprint(),
            **dataclasses.asdict(checkpoint.config),
        }
        if facts["adapter"] is not None:
            facts["adapter"]["targets"] = f"{len(facts['adapter']['targets'])} linear layers"
        if check:
            from gem_rag.core.suitability import examine

            facts["suitability"] = dataclasses.asdict(examine(checkpoint.path))
    shown = {**facts, **facts.get("suitability", {})}
    shown.pop("suitability", None)
    lines = (f"{name}: {' '.join(str(value).split())}" for name, value in shown.items())
    print_result(facts, as_json, "\n".join(lines))


def _print_version(requested: bool) -> None:
    if requested:
        print(f"gem-rag {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run a command; errors become one line and an exit code, never a traceback."""
    warnings.showwarning = lambda message, *args, **kwargs: print_notice(f"warning: {message}")
    warnings.filterwarnings("default", category=DeprecationWarning, module="gem_rag")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # some terminals cannot show every character
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        code = app(_protect_question(arguments), standalone_mode=False)
        if code == _INTERRUPTED:  # typer returns it instead of raising
            raise KeyboardInterrupt
    except GemError as error:
        print_notice(error)
        code = error.exit_code
    except _USAGE_ERRORS as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        print_notice(f"{error.format_message()}{where}")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        print_notice("interrupted; what was committed before is kept")
        code = _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if os.environ.get("GEM_RAG_DEBUG"):
            raise
        print_notice(f"{type(error).__name__}: {error} (GEM_RAG_DEBUG=1 shows where)")
        code = 1
    sys.exit(code)


def _protect_question(arguments: list[str]) -> list[str]:
    """Move a question that starts with a dash behind "--", so that it is not read as an option."""
    if arguments[:1] not in (["search"], ["ask"]) or "--" in arguments:
        return arguments

    def is_question(word: str) -> bool:
        return word.startswith("-") and " " in word.strip() and "=" not in word.split()[0]

    questions = [word for word in arguments if is_question(word)]
    options = [word for word in arguments if not is_question(word)]
    return [*options, "--", *questions] if questions else options
