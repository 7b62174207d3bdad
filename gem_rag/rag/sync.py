"""What a sync changes, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gem_rag.documents.document import Document, Skipped
from gem_rag.rag.commit import Entry


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


@dataclass(frozen=True)
class Changes:
    """How documents that were read differ from those in the index.

    Attributes:
        added: Sources of new ones.
        changed: Sources whose text or title differs.
        unchanged: Sources whose text and title do not.
        relocated: Entries whose text is the same, but whose file or places in it differ.
        gone: Sources of those that are to be removed.
    """

    added: list[str]
    changed: list[str]
    unchanged: list[str]
    relocated: dict[str, Entry]
    gone: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.relocated or self.gone)


def find_changes(
    indexed: Mapping[str, Entry], read: Mapping[str, Document], gone: set[str]
) -> Changes:
    """Compare documents with the index.

    Args:
        indexed: What the index has, by source.
        read: What was read.
        gone: Sources to remove.
    """
    known = {source: indexed[source] for source in read if source in indexed}
    is_same = {source: entry.document == read[source] for source, entry in known.items()}
    changed = sorted(source for source, same in is_same.items() if not same)
    unchanged = [source for source, same in is_same.items() if same]
    relocated = {
        source: Entry(read[source], known[source].chunks)
        for source in unchanged
        if _file(known[source].document) != _file(read[source])
    }
    added = [source for source in read if source not in indexed]
    return Changes(added, changed, unchanged, relocated, sorted(gone))


def _file(document: Document) -> tuple[object, ...]:
    return document.digest, document.file, document.places
