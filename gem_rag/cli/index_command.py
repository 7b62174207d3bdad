"""`gem-rag index`: documents into an index, once or for as long as they change."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gem_rag.cli.common import (
    DEFAULT_INDEX,
    DEFAULT_MODEL,
    IndexOption,
    JsonOption,
    ModelOption,
    load_model,
    open_index,
    print_notice,
    print_result,
    require_extra,
    shows_progress,
)
from gem_rag.errors import GemError, InputError

if TYPE_CHECKING:
    from gem_rag.rag.index import Index
    from gem_rag.rag.sync import SyncReport


def index(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders to index.")] = None,
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    store: Annotated[
        str | None, typer.Option(help="faiss or chroma; default for a new index: faiss.")
    ] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens in a chunk of a new index.")
    ] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Embed chunks of a new index in context, up to this many tokens at once; "
            "default: 0, each on its own.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Only files that match this pattern, as in .gitignore; repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Exclude what matches this pattern; repeatable.")
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(help="Instead, remove this document, file or folder; repeatable."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep running and follow changes, until Ctrl-C.")
    ] = False,
    ray_workers: Annotated[
        int,
        typer.Option(min=0, help="Embed with this many copies of the model on a Ray cluster."),
    ] = 0,
    reembed: Annotated[
        bool, typer.Option("--reembed", help="Embed the whole index again with --model.")
    ] = False,
    keep_prefill: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Keep keys and values of this many of the most asked documents beside the index, "
            "so that answers from them begin sooner; what was kept of others is removed.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create an index of documents, or bring it up to date."""
    from gem_rag.rag.index import Index

    if remove:
        if paths or reembed:
            raise InputError("--remove stands alone: sync or re-embed with another command")
        removed = open_index(index, model).remove(remove)
        print_result({"removed": removed}, as_json, f"removed {', '.join(removed)}")
        return
    if keep_prefill is not None and not paths and not reembed:
        _keep_prefill(open_index(index, model), keep_prefill, as_json)
        return
    if not paths and not reembed:
        raise InputError("index needs files or folders: gem-rag index docs/")
    index = index.expanduser()
    progress = shows_progress(as_json)
    gem = load_model(_model_for(index, model))
    if reembed:
        document_index = Index.reembed(index, gem, progress=progress)
        chunks = len(document_index)
        if not paths:
            print_result({"chunks": chunks}, as_json, f"re-embedded {chunks} chunks")
            return
    else:
        document_index = Index.open(
            index,
            gem,
            store,  # type: ignore[arg-type]
            chunk_tokens=chunk_tokens,
            context_tokens=context_tokens,
        )
    choice: dict[str, Any] = {"include": include or (), "exclude": exclude or ()}
    if ray_workers:
        require_extra("ray", "ray")
        from gem_rag.rag.ray_embedding import RayEmbedder

        choice["embedder"] = RayEmbedder(gem, ray_workers)
    if watch:
        _follow(document_index, paths or [], as_json, **choice)
        return
    report = document_index.sync(paths or (), progress=progress, **choice)
    if not document_index.sources:
        _print_notices(report)
        raise InputError(
            f"found nothing to index in {', '.join(map(str, paths or ()))}: it takes text, "
            "markup, tables and source code, and with gem-rag[files] PDF, office files, notebooks, "
            "e-mail and HTML"
        )
    _print_report(report, index, as_json)
    if keep_prefill is not None:
        _keep_prefill(document_index, keep_prefill, as_json)
    if not report.complete:
        raise GemError(
            "some files or folders could not be read, see above; what the index had of them is kept"
        )


def doctor(
    index: IndexOption = DEFAULT_INDEX,
    model: ModelOption = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Repair what can be; texts are embedded again."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read a whole index, report damage, and repair it with --repair."""
    findings = open_index(index, model).examine(repair=repair)
    lines = [f"{finding.what}{': repaired' * finding.is_repaired}" for finding in findings]
    found = [dataclasses.asdict(finding) for finding in findings]
    print_result(found, as_json, "\n".join(lines) or "the index is whole")
    left = sum(not finding.is_repaired for finding in findings)
    if left and not repair:
        raise GemError(f"the index has {left} faults: put right what can be with --repair")
    if left:
        raise GemError(f"{left} faults could not be repaired: index again, or restore a copy")


def _keep_prefill(index: Index, documents: int, as_json: bool) -> None:
    kept = index.keep_prefill(documents)
    summary = (
        f"kept keys and values of {kept.kept} of the {kept.chunks} chunks of "
        f"{len(kept.documents)} documents, {kept.bytes / 1e6:.0f} MB"
    )
    print_result(dataclasses.asdict(kept), as_json, summary)


def _follow(index: Index, paths: Sequence[Path], as_json: bool, **choice: Any) -> None:
    """Sync, and again whenever something changes."""
    require_extra("watch", "watchfiles")
    from gem_rag.rag.watch import follow

    with _stopped_by_interrupt() as stop:
        for report in follow(index, paths, stop=stop, **choice):
            if isinstance(report, GemError):
                print_notice(report)
            else:
                _print_report(report, index.folder, as_json)
                sys.stdout.flush()


@contextmanager
def _stopped_by_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that it ends a watch even if it comes where an exception is
    lost, as in a finalizer."""
    stop = threading.Event()

    def interrupt(*_: object) -> None:
        stop.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
        if stop.is_set():
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)


def _print_notices(report: SyncReport) -> None:
    for skipped in report.skipped:
        print_notice(f"skipped: {skipped.reason}")
    for what, found in (
        ("passed over files of kinds that are not indexed", report.passed_over),
        ("left out", report.left_out),
    ):
        if found:
            numbers = ", ".join(f"{count} {kind}" for kind, count in found.items())
            print_notice(f"{what}: {numbers}")


def _print_report(report: SyncReport, folder: Path, as_json: bool) -> None:
    _print_notices(report)
    counts = ", ".join(
        f"{len(getattr(report, name))} {name}"
        for name in ("added", "changed", "removed", "unchanged", "skipped")
    )
    summary = f"{counts}; {report.chunks} chunks in {folder}, {report.embedded} embedded now"
    print_result(dataclasses.asdict(report), as_json, summary)


def _model_for(index: Path, model: str | None) -> str:
    """The model that is named, or else the one that the index was made with."""
    from gem_rag.rag.manifest import Manifest

    if model:
        return model
    manifest = Manifest.read(index)
    return manifest.model if manifest else DEFAULT_MODEL
