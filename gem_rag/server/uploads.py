"""Files that clients send: kept beside the index, and synced with it like any folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.documents.document import Document
from gem_rag.documents.readers import KINDS
from gem_rag.errors import InputError
from gem_rag.rag.sync import SyncReport
from gem_rag.server.catalog import ServedIndex
from gem_rag.server.errors import ApiError

Tell = Callable[[int, int], None]
_LONGEST_NAME = 200  # bytes


def check_name(name: str | None) -> str:
    """The name that an uploaded file is kept under. Raises ApiError if it cannot be."""
    plain = (name or "").replace("\\", "/").rpartition("/")[2]
    if not plain.isprintable() or not plain or plain.startswith("."):
        raise ApiError(f"a file is called {name!r}: give it a plain name", param="file")
    if len(plain.encode()) > _LONGEST_NAME:
        raise ApiError(f"the file name {plain[:40]!r}... is too long: shorten it", param="file")
    suffix = Path(plain).suffix.lower()
    if suffix not in KINDS:
        raise ApiError(
            f"{plain!r} is of no kind that can be indexed{did_you_mean(suffix, KINDS)}: send one "
            f"of {', '.join(sorted(KINDS))}",
            param="file",
        )
    return plain


def add_files(served: ServedIndex, files: Sequence[UploadFile], tell: Tell) -> dict[str, Any]:
    """Keep files, and bring the index in sync with them; those that cannot be read are removed.

    Raises:
        ApiError: The index is being written.
        GemError: As `Index.sync`.
    """
    names = [check_name(file.filename) for file in files]
    with served.writing() as index:
        served.uploads.mkdir(parents=True, exist_ok=True)
        for name, file in zip(names, files, strict=True):
            _keep(file, served.uploads / name)
        report = index.sync(served.uploads, on_progress=tell)
    for skipped in report.skipped:
        kept = served.uploads / Path(skipped.source).name
        if kept.name in names:
            kept.unlink(missing_ok=True)
    return report_fields(report, served)


def add_documents(served: ServedIndex, documents: Sequence[Document], tell: Tell) -> dict[str, Any]:
    """Bring the index in sync with documents; raises what `add_files` raises."""
    with served.writing() as index:
        return report_fields(index.sync(documents, on_progress=tell), served)


def sync(served: ServedIndex, tell: Tell) -> dict[str, Any]:
    """Bring the index in sync with the files and folders that it was made of.

    Raises:
        ApiError: The index is being written, or was made of no files.
        GemError: As `Index.sync`.
    """
    roots = [Path(root) for root in served.index.manifest.roots.values()]
    found = [root for root in roots if root.exists()]
    if not found:
        raise ApiError(
            f"the index {served.name!r} has no files or folders to be synced with: upload some",
            param="index",
        )
    with served.writing() as index:
        return report_fields(index.sync(found, on_progress=tell), served)


def remove(served: ServedIndex, source: str) -> list[str]:
    """Remove a document, file or folder from the index, and the file if it was uploaded.

    Returns:
        The sources that were removed.

    Raises:
        ApiError: There is none of that name, or the index is being written.
    """
    with served.writing() as index:
        try:
            removed = index.remove(source)
        except InputError:
            raise ApiError(
                f"the index {served.name!r} has no document, file or folder {source!r}"
                f"{did_you_mean(source, index.sources)}",
                param="source",
                status=404,
            ) from None
        folder, _, name = source.rpartition("/")
        if folder == served.uploads.name:
            (served.uploads / name).unlink(missing_ok=True)
    return removed


def report_fields(report: SyncReport, served: ServedIndex) -> dict[str, Any]:
    """What a sync did, as responses say it."""
    here = f"{served.uploads}{os.sep}"
    skipped = [
        {"source": one.source, "reason": one.reason.replace(here, "")} for one in report.skipped
    ]
    return {
        "index": served.name,
        "added": report.added,
        "changed": report.changed,
        "removed": report.removed,
        "unchanged": len(report.unchanged),
        "skipped": skipped,
        "passed_over": report.passed_over,
        "left_out": report.left_out,
        "chunks": report.chunks,
        "embedded": report.embedded,
    }


def _keep(upload: UploadFile, place: Path) -> None:
    """Write a file so that a sync never sees half of it."""
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".upload-", delete=False) as part:
        try:
            shutil.copyfileobj(upload.file, part)
            part.close()
            os.replace(part.name, place)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
