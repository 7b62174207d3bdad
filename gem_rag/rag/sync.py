"""What a sync finds, and its report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gem_rag._utils.progress import Advance
from gem_rag.documents.document import Document, LeftOut, Skipped
from gem_rag.rag.commit import Commit, content_digest, place_of
from gem_rag.rag.roots import Roots, is_within_any
from gem_rag.rag.writer import Writer


@dataclass(frozen=True)
class SyncReport:
    """What a sync did.

    Attributes:
        added: Sources of new documents.
        changed: Sources whose text or title changed.
        removed: Sources whose file is gone.
        unchanged: Sources that stayed as they were.
        skipped: Files and folders that could not be read; what the index has of them stays.
        passed_over: How many files of other kinds were in the folders, by suffix.
        left_out: How many files and whole folders a rule left out, by the rule.
        chunks: Chunks in the index now.
        embedded: Chunks whose vectors had to be computed.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    chunks: int = 0
    embedded: int = 0

    @property
    def complete(self) -> bool:
        """Whether the system let every file and folder be read."""
        return not any(skipped.unreadable for skipped in self.skipped)


class Sync:
    """Documents as they are read, compared with an index and written into its next commit.

    Args:
        commit: The transaction that the sync runs in.
        writer: Writes the next commit.
        advance: Told of each file that has been read.
    """

    def __init__(self, commit: Commit, writer: Writer, advance: Advance) -> None:
        self._commit = commit
        self._writer = writer
        self._advance = advance
        self._start = time.monotonic()
        self._file = ""
        self._seen: set[str] = set()
        self._skipped: list[Skipped] = []
        self._left_out = LeftOut()
        self._added: list[str] = []
        self._changed: list[str] = []
        self._unchanged: list[str] = []
        self._removed: list[str] = []
        self.has_changes = False  # that must be committed

    def take(self, entry: Document | Skipped | LeftOut) -> None:
        """Take what was read; of two documents of one source the later one counts."""
        if isinstance(entry, Skipped):
            self._skipped.append(entry)
        elif isinstance(entry, LeftOut):
            self._left_out = entry
        else:
            self._take_document(entry)
            self._show_progress(entry)

    def remove_gone(self, roots: Roots, paths: Sequence[Path]) -> None:
        """Remove the documents of files below the synced paths that are not there any more."""
        unread = [roots.path_of(skip.source) for skip in self._skipped]
        for source, file in list(self._commit.files()):
            if source in self._seen or not file:
                continue
            path = roots.path_of(file)
            if is_within_any(path, paths) and not is_within_any(path, unread):
                self._removed.append(source)
                self._writer.remove(source)
                self.has_changes = True

    def report(self, chunks: int) -> SyncReport:
        """What was done."""
        return SyncReport(
            self._added,
            sorted(self._changed),
            sorted(self._removed),
            self._unchanged,
            self._skipped,
            dict(self._left_out.kinds.most_common()),
            dict(self._left_out.rules.most_common()),
            chunks,
            self._writer.embedded,
        )

    def _show_progress(self, document: Document) -> None:
        embedded = self._writer.embedded
        rate = embedded / (time.monotonic() - self._start + 1e-9)
        label = f"Embedding, {embedded} chunks, {rate:.0f} a second"
        self._advance(int(document.file != self._file), label)
        self._file = document.file

    def _take_document(self, document: Document) -> None:
        source = document.source
        known = self._commit.identity(source)
        same = known is not None and known.content == content_digest(document)
        if not same:
            self._writer.put(document)
        elif known is not None and known.place != place_of(document):
            self._writer.relocate(document)
        else:
            self._note(source, self._unchanged)
            return
        self.has_changes = True
        self._note(source, self._unchanged if same else self._changed if known else self._added)

    def _note(self, source: str, sources: list[str]) -> None:
        if source not in self._seen:
            self._seen.add(source)
            sources.append(source)
