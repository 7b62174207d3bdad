"""`gem-rag eval`: what a team needs before it trusts a model.

Each command writes scores.json and one report to the folder `--out`; commands with the same folder
add to it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gem_rag.cli.common import (
    DEFAULT_INDEX,
    DEFAULT_MODEL,
    DEFAULT_RANKING,
    HitsOption,
    IndexOption,
    JsonOption,
    MarginOption,
    ModelNameOption,
    ModelOption,
    RankingOption,
    StyleOption,
    load_model,
    open_index,
    print_notice,
    print_result,
    require_extra,
    shows_progress,
)
from gem_rag.cli.tables import draw_comparison, draw_scores
from gem_rag.errors import InputError

if TYPE_CHECKING:
    from gem_rag.evaluation.scores import Record

app = typer.Typer(
    help="Measure embeddings, generation, retrieval and answers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for scores and the report.")]
Tasks = Annotated[
    list[str] | None, typer.Option("--tasks", "-t", help="Names, separated by commas.")
]
Documents = Annotated[
    list[Path] | None, typer.Option("--documents", help="Your own files and folders.")
]
Baselines = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline",
        "-b",
        help="mean-pooling, a sentence-transformers folder, or bm25.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder of data sets, laid out like HF_HOME."),
]
OUT = Path("gem-eval")


@app.command()
def mteb(
    tasks: Tasks = None,
    paper: Annotated[bool, typer.Option("--paper", hidden=True)] = False,
    documents: Documents = None,
    model: ModelNameOption = DEFAULT_MODEL,
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "auto",
    baseline: Baselines = None,
    instructions: Annotated[
        str | None, typer.Option(help="mteb for its own, or a JSON file of instructions by task.")
    ] = None,
    cache: Cache = None,
    out: Out = OUT,
    as_json: JsonOption = False,
) -> None:
    """Run mteb's tasks or benchmarks by name, or tasks of the same kinds on your own documents."""
    _needs_eval()
    from gem_rag.evaluation.baselines import baseline as opened
    from gem_rag.evaluation.mteb_tasks import run_mteb, select_tasks
    from gem_rag.evaluation.scores import with_baselines

    _warn_if_paper(paper)
    named = _split(tasks)
    found = select_tasks(named, paper) if named or paper or not documents else []
    if documents:
        from gem_rag.evaluation.collection import from_documents
        from gem_rag.evaluation.document_tasks import document_tasks

        found += document_tasks(from_documents(documents))
    said = _instructions(instructions)
    gem = load_model(model, engine)
    models = [gem, *(opened(name, gem.name, gem.max_length) for name in baseline or ())]
    records = [
        run_mteb(one, found, out, cache=cache, instructions=said, progress=shows_progress(as_json))
        for one in models
    ]
    _write(with_baselines(*records), out, as_json)


@app.command()
def lm(
    tasks: Tasks = None,
    paper: Annotated[bool, typer.Option("--paper", hidden=True)] = False,
    documents: Documents = None,
    model: ModelNameOption = DEFAULT_MODEL,
    base: Annotated[
        str | None, typer.Option(help="The model before training, to compare with.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Number of few-shot examples; default: the task's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum questions per task.")] = None,
    include: Annotated[
        Path | None, typer.Option(help="Folder of your own tasks, in lm_eval's YAML format.")
    ] = None,
    cache: Cache = None,
    out: Out = OUT,
    as_json: JsonOption = False,
) -> None:
    """Run lm_eval's tasks on a model and, side by side, on its base."""
    _needs_eval()
    from gem_rag.evaluation.lm_tasks import PAPER_LM, run_lm

    _warn_if_paper(paper)
    named = _split(tasks)
    if paper:
        named, shots = [*PAPER_LM.tasks, *named], PAPER_LM.shots if shots is None else shots
    if documents:
        from gem_rag.evaluation.collection import from_documents
        from gem_rag.evaluation.document_tasks import write_choices

        if include:
            raise InputError("give tasks of your own (--include) or documents (--documents)")
        include = out / "choices"
        named.append(write_choices(from_documents(documents), include))
    record = run_lm(
        _by_name(base, model), named, out, shots=shots, limit=limit, include=include, cache=cache,
        progress=shows_progress(as_json),
    )  # fmt: skip
    _write(record, out, as_json)


@app.command()
def paper(
    model: ModelNameOption = DEFAULT_MODEL,
    base: Annotated[str | None, typer.Option(help="The model before training.")] = None,
    documents: Documents = None,
    cache: Cache = None,
    out: Out = OUT,
    as_json: JsonOption = False,
) -> None:
    """Make the GEM paper's table: its mteb tasks and MMLU, for a model and its base.

    --documents adds tasks from your own files. What lacks its data set is marked as missing.
    """
    _needs_eval()
    from gem_rag.evaluation.baselines import baseline as opened
    from gem_rag.evaluation.lm_tasks import PAPER_LM, run_lm
    from gem_rag.evaluation.mteb_tasks import run_mteb, select_tasks
    from gem_rag.evaluation.scores import with_baselines

    found, named, include = select_tasks(paper=True), list(PAPER_LM.tasks), None
    if documents:
        from gem_rag.evaluation.collection import from_documents
        from gem_rag.evaluation.document_tasks import document_tasks, write_choices

        collection = from_documents(documents)
        found, include = [*found, *document_tasks(collection)], out / "choices"
        named.append(write_choices(collection, include))
    gem = load_model(model)
    shown = shows_progress(as_json)
    records = [run_mteb(gem, found, out, cache=cache, progress=shown)]
    if base:  # which has no other embedding
        pooled = opened("mean-pooling", base, gem.max_length)
        records.append(run_mteb(pooled, found, out, cache=cache, name=Path(base).name,
                                progress=shown))  # fmt: skip
    records.append(run_lm(_by_name(base, model), named, out, shots=PAPER_LM.shots, include=include,
                          cache=cache, progress=shown))  # fmt: skip
    _write(with_baselines(*records), out, as_json)


@app.command()
def retrieval(
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="A folder in the BEIR layout.")
    ] = None,
    documents: Documents = None,
    model: ModelNameOption = DEFAULT_MODEL,
    baseline: Baselines = None,
    held_out: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of --documents whose titles are queries."),
    ] = 1.0,
    out: Out = OUT,
    as_json: JsonOption = False,
) -> None:
    """Measure retrieval with judged queries, or with the headings of your own documents."""
    _needs_eval()
    from gem_rag.evaluation.collection import from_documents, read_beir
    from gem_rag.evaluation.retrieval import evaluate_retrieval

    if (data is None) == (documents is None):
        raise InputError("give judged queries (--data) or documents (--documents), one of both")
    if data is not None:
        collection = read_beir(data)
    else:
        collection = from_documents(documents or [], held_out)
        collection.save(out / "collection")
        print_notice(
            f"{len(collection.queries)} titles ask {len(collection.documents)} texts; the set is "
            f"in {out / 'collection'}"
        )
    baselines = baseline if baseline is not None else ["bm25", "mean-pooling"]
    _write(evaluate_retrieval(load_model(model), collection, baselines), out, as_json)


@app.command()
def rag(
    data: Annotated[
        Path,
        typer.Option("--data", "-d", help="JSON lines with question, answer and source."),
    ],
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    k: HitsOption = 5,
    ranking: RankingOption = DEFAULT_RANKING,
    style: StyleOption = None,
    margin: MarginOption = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum in an answer.")] = None,
    out: Out = OUT,
    as_json: JsonOption = False,
) -> None:
    """Ask questions with known answers, and score retrieval, answers, citations and refusals."""
    _needs_eval()
    from gem_rag.evaluation.rag_questions import evaluate_answers, read_questions, save_answers
    from gem_rag.rag.answer import check_style

    check_style(style)
    questions = read_questions(data)
    found, asked = evaluate_answers(
        open_index(index, model), questions, k, task=data.stem, progress=shows_progress(as_json),
        ranking=ranking, style=style, margin=margin, max_tokens=max_tokens,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    save_answers(out / f"answers-{data.stem}.jsonl", asked)
    _write(found, out, as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder with an evaluation's scores.json.")] = OUT,
) -> None:
    """Render the report of an evaluation again."""
    _needs_eval()
    from gem_rag.evaluation.html_report import write_report
    from gem_rag.evaluation.scores import Record

    print(f"wrote {write_report(Record.load(folder / 'scores.json'), folder)}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of one evaluation.")],
    second: Annotated[Path, typer.Argument(help="Folder of the other.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations, with significance tests."""
    _needs_eval()
    from dataclasses import asdict

    from gem_rag.evaluation.comparison import compare as compared
    from gem_rag.evaluation.scores import Record

    found = compared(*(Record.load(folder / "scores.json") for folder in (first, second)))
    if as_json:
        print_result([asdict(one) for one in found], True)
    else:
        draw_comparison(found)


def _warn_if_paper(paper: bool) -> None:
    if paper:
        warnings.warn(
            "--paper goes in gem-rag 0.2: use gem-rag eval paper", DeprecationWarning, stacklevel=2
        )


def _needs_eval() -> None:
    require_extra(
        "eval", "bm25s", "ir_measures", "jinja2", "lm_eval", "matplotlib", "mteb", "scipy"
    )


def _split(names: list[str] | None) -> list[str]:
    """Names that came one by one, or with commas between; benchmarks' own names have commas."""
    given = names or []
    return [part.strip() for name in given
            for part in ([name] if "(" in name else name.split(",")) if part.strip()]  # fmt: skip


def _by_name(base: str | None, model: str) -> dict[str, str]:
    """The models that are put side by side, the base first."""
    return {Path(name).name: name for name in (base, model) if name}


def _instructions(given: str | None) -> dict[str, str] | Literal["mteb"] | None:
    if given is None or given == "mteb":
        return given  # type: ignore[return-value]
    try:
        found = json.loads(Path(given).read_text(encoding="utf-8"))
        if all(isinstance(text, str) for text in found.values()):
            return dict(found)
    except (OSError, ValueError, AttributeError):
        pass
    raise InputError(f"--instructions {given} is no JSON file of tasks and what to tell them")


def _write(found: Record, out: Path, as_json: bool) -> None:
    """Add to what the folder holds, and print what is new."""
    from dataclasses import asdict

    from gem_rag.evaluation.html_report import write_report
    from gem_rag.evaluation.scores import Record, merge_records

    file = out / "scores.json"
    records = [Record.load(file), found] if file.exists() else [found]
    page = write_report(merge_records(records), out)
    if as_json:
        print_result(asdict(found), True)
        return
    draw_scores(found)
    print(f"\nwrote {page}")
