"""`Index`: documents made searchable by one model, kept in step with their files.

Owns what is committed: which documents, which chunks, which vectors, by which model. Knows
nothing about how vectors are stored (`stores/`) or computed (`model.py`).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from filelock import FileLock, Timeout

from gem_rag.core.arrays import FloatArray
from gem_rag.core.config import AnswerStyle
from gem_rag.documents.document import Chunk, Document, Skipped
from gem_rag.documents.readers import read_paths, source_name
from gem_rag.documents.splitting import Splitter, chunks
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem
from gem_rag.rag.answer import Answer, answer
from gem_rag.rag.hits import Hit
from gem_rag.rag.manifest import Manifest, remove_others
from gem_rag.rag.stores.store import Store

StoreName = Literal["faiss", "chroma"]
DEFAULT_CHUNK_TOKENS = 256


@dataclass(frozen=True)
class SyncReport:
    """What a sync did: sources added, changed, removed and unchanged, and files skipped.

    chunks: chunks in the index now.
    embedded: chunks whose vectors had to be computed.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    chunks: int = 0
    embedded: int = 0


class _Entry(NamedTuple):
    """A document and the [start, stop) characters of its chunks."""

    document: Document
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class _State:
    """One commit, in memory; never changed, so searches go on while a sync makes the next."""

    manifest: Manifest
    documents: dict[str, _Entry]
    chunks: dict[str, Chunk]
    store: Store


class Index:
    """Chunks of documents and their vectors in a folder; open one with `Index.open`.

    Safe from many threads; one process at a time may write.
    """

    def __init__(self, folder: Path, gem: Gem, state: _State) -> None:
        self.folder = folder
        self.gem = gem
        self._state = state

    @classmethod
    def open(
        cls,
        folder: str | Path,
        gem: Gem,
        store: StoreName | None = None,
        *,
        chunk_tokens: int | None = None,
        create: bool = True,
    ) -> Index:
        """Open an index, or make an empty one.

        store: "faiss" (default) or "chroma"; of an index that exists, what it was made with.
        chunk_tokens: most tokens in a chunk, title included; default 256 or the model's most.
        create: whether an index that is not there is made (on disk at the first sync).

        Raises InputError if the folder is not an index or was made with other settings,
        GemError if it was made with another model or is damaged.
        """
        folder = Path(folder).expanduser().absolute()
        if store is not None and store not in get_args(StoreName):
            raise InputError(f"there is no store {store!r}: use {' or '.join(get_args(StoreName))}")
        if chunk_tokens is not None and not 16 <= chunk_tokens <= gem.max_length:
            raise InputError(
                f"chunk_tokens must be from 16 to {gem.max_length}, what the model reads at once; "
                f"not {chunk_tokens}"
            )
        manifest = Manifest.read(folder) if create else Manifest.existing(folder)
        if manifest is None:
            tokens = chunk_tokens or min(DEFAULT_CHUNK_TOKENS, gem.max_length)
            manifest = Manifest(gem.name, gem.fingerprint, gem.dim, store or "faiss", tokens)
        for name, given in (("store", store), ("chunk_tokens", chunk_tokens)):
            if given not in (None, getattr(manifest, name)):
                raise InputError(
                    f"the index in {folder} was made with {name}={getattr(manifest, name)}, not "
                    f"{given}: leave it out, or use another folder"
                )
        if manifest.fingerprint != gem.fingerprint:
            raise GemError(
                f"the index in {folder} was made by model {manifest.model!r} "
                f"({manifest.fingerprint[:12]}) and this is {gem.name!r} ({gem.fingerprint[:12]}): "
                f"use that model, or re-embed with: gem-rag index --reembed --index {folder} "
                f"--model {gem.name}"
            )
        return cls(folder, gem, _load(folder, manifest))

    @classmethod
    def reembed(cls, folder: str | Path, gem: Gem, *, progress: bool = False) -> Index:
        """Open an index with another model: all texts are split and embedded again, from the
        index's own copy of them. Until that is committed the old index stays as it is.

        Raises InputError if there is no index, GemError as `sync`.
        """
        folder = Path(folder).expanduser().absolute()
        old = Manifest.existing(folder)
        with _write_lock(folder):
            tokens = min(old.chunk_tokens, gem.max_length)
            blank = Manifest(
                gem.name, gem.fingerprint, gem.dim, old.store, tokens, generation=old.generation
            )
            index = cls(folder, gem, _State(blank, {}, {}, _open_store(folder, blank)))
            documents = [entry.document for entry in _read_documents(folder, old).values()]
            index._commit(index._split(documents), progress)
        return index

    # -- reading -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Chunks in the index."""
        return len(self._state.chunks)

    @property
    def manifest(self) -> Manifest:
        """What the index holds."""
        return self._state.manifest

    @property
    def sources(self) -> list[str]:
        """Names of the documents in the index."""
        return sorted(self._state.documents)

    def document(self, source: str) -> Document:
        """A document as it was indexed. Raises InputError if it is not in the index."""
        if source not in self._state.documents:
            raise InputError(f"there is no document {source!r} in the index")
        return self._state.documents[source][0]

    def search(self, question: str, k: int = 5) -> list[Hit]:
        """The k chunks nearest to a question, best first; of equal texts only the first.

        Raises InputError if the index or the question is empty, or k is below 1.
        """
        return self.search_many([question], k)[0]

    def search_many(self, questions: Sequence[str], k: int = 5) -> list[list[Hit]]:
        """As `search`, for many questions in one batch."""
        state = self._state
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}")
        if not state.chunks:
            raise InputError(
                f"the index in {self.folder} is empty: add documents with gem-rag index"
            )
        # Twice as many, since documents repeat one another.
        found = state.store.search(self.gem.embed_queries(questions), 2 * k)
        return [
            _distinct([Hit(state.chunks[id], score) for id, score in hits])[:k] for hits in found
        ]

    def ask(
        self, question: str, k: int = 5, *, style: AnswerStyle | None = None,
        margin: float | None = None, **sampling: Any,
    ) -> Answer:  # fmt: skip
        """Answer a question from the k nearest chunks, with citations.

        style: "free" or "quote"; default the model's own (see `answer.answer`).
        margin: chunks that score lower than the best by more than this are not read; default the
            model's own.
        sampling: as for `Gem.generate`.
        """
        start = time.perf_counter()
        hits = self.search(question, k)
        searched = time.perf_counter() - start
        found = answer(self.gem, question, hits, style, margin=margin, **sampling)
        return dataclasses.replace(found, timings={"search": searched, **found.timings})

    # -- writing -----------------------------------------------------------------------------

    def sync(self, items: Iterable[str | Path | Document], *, progress: bool = False) -> SyncReport:
        """Bring the index in step with files, folders and documents.

        New and changed texts are embedded; a document whose file is gone from a folder given
        here is removed; documents from elsewhere stay. A file that can no longer be read is
        skipped, and what the index has of it stays. Nothing is seen by searches until all of it
        is on disk; after a crash the index is as it was.

        Raises InputError for a path that is not there, GemError if another process is writing.
        """
        items = list(items)
        paths = [Path(item).expanduser() for item in items if not isinstance(item, Document)]
        read = list(read_paths(paths, self.folder.parent))
        read += [item for item in items if isinstance(item, Document)]
        roots = [source_name(path, self.folder.parent) for path in paths]
        found = {d.source: d for d in read if isinstance(d, Document)}
        skipped = [s for s in read if isinstance(s, Skipped)]
        self.folder.mkdir(parents=True, exist_ok=True)
        with _write_lock(self.folder):
            if Manifest.read(self.folder) != self._state.manifest:  # another process committed
                self._state = _load(self.folder, self._state.manifest)
            self._state.store.clean()
            known = self._state.documents
            unread = [s.source for s in skipped]
            gone = {
                s for s in known if s not in found and _within(s, roots) and not _within(s, unread)
            }
            changed = {s for s in found if s in known and known[s].document != found[s]}
            added = [s for s in found if s not in known]
            embedded = 0
            if added or changed or gone:
                stay = {s: entry for s, entry in known.items() if s not in gone}
                fresh = self._split(d for s, d in found.items() if s in changed or s not in known)
                embedded = self._commit(stay | fresh, progress)
        same = [s for s in found if s in known and s not in changed]
        return SyncReport(added, sorted(changed), sorted(gone), same, skipped, len(self), embedded)

    def _split(self, documents: Iterable[Document]) -> dict[str, _Entry]:
        splitter = Splitter(self.gem.tokenizer, self._state.manifest.chunk_tokens)
        return {d.source: _Entry(d, splitter.spans(d)) for d in documents}

    def _commit(self, documents: dict[str, _Entry], progress: bool) -> int:
        """Make these the index's documents; returns how many chunks had to be embedded.

        Raises GemError if the disk is full or fails; the index is then as it was.
        """
        by_id = _chunks(documents)
        fresh = [id for id in by_id if id not in self._state.chunks]
        vectors, embedded = self._vectors([by_id[id] for id in fresh], progress)
        try:
            self._write(documents, by_id, fresh, vectors)
        except OSError as error:
            raise GemError(
                f"could not write {self.folder} ({error.strerror}): the index is as it was before"
            ) from error
        return embedded

    def _write(
        self,
        documents: dict[str, _Entry],
        by_id: dict[str, Chunk],
        fresh: Sequence[str],
        vectors: FloatArray,
    ) -> None:
        old = self._state
        generation = old.manifest.generation + 1
        file = self.folder / f"documents-{generation}.jsonl"
        with file.open("w", encoding="utf-8") as handle:
            for document, spans in documents.values():
                record = {**dataclasses.asdict(document), "spans": spans}
                handle.write(json.dumps(record, ensure_ascii=False) + "\n")
        files = old.store.stage(list(by_id), fresh, vectors, generation)
        manifest = dataclasses.replace(
            old.manifest, generation=generation, documents=len(documents), chunks=len(by_id)
        ).commit(self.folder, [file, *files])
        store = _open_store(self.folder, manifest)
        store.load(list(by_id), generation)
        self._state = _State(manifest, documents, by_id, store)
        remove_others(self.folder, "documents-*.jsonl", manifest.files)
        store.clean()

    def _vectors(self, chunks: list[Chunk], progress: bool) -> tuple[FloatArray, int]:
        """Vectors of new chunks, taken over where the same passage stood elsewhere; and how many
        were computed."""
        known = {c.passage: id for id, c in self._state.chunks.items()}
        vectors = np.empty((len(chunks), self.gem.dim), dtype=np.float32)
        moved = [i for i, c in enumerate(chunks) if c.passage in known]
        new = [i for i, c in enumerate(chunks) if c.passage not in known]
        if moved:
            vectors[moved] = self._state.store.vectors([known[chunks[i].passage] for i in moved])
        if new:
            texts = [chunks[i].passage for i in new]
            vectors[new] = self.gem.embed_documents(texts, progress=progress)
        return vectors, len(new)


def _distinct(hits: Sequence[Hit]) -> list[Hit]:
    first: dict[str, Hit] = {}
    for hit in hits:
        first.setdefault(hit.chunk.text, hit)
    return list(first.values())


def _load(folder: Path, new: Manifest) -> _State:
    """The committed state on disk; `new` and nothing else where there is none."""
    for attempt in range(3):
        manifest = Manifest.read(folder) or new
        if manifest.fingerprint != new.fingerprint:
            raise GemError(
                f"the index in {folder} has been re-embedded by model {manifest.model!r} since: "
                "open it with that model"
            )
        try:
            documents = _read_documents(folder, manifest)
            by_id = _chunks(documents)
            store = _open_store(folder, manifest)
            store.load(list(by_id), manifest.generation)
        except FileNotFoundError as error:
            # Another process may have committed since the manifest was read.
            if attempt == 2:
                raise GemError(
                    f"{error.args[0]} is missing: restore it, or delete {folder} and index again"
                ) from None
        else:
            return _State(manifest, documents, by_id, store)
    raise AssertionError("the last attempt returns or raises")


def _read_documents(folder: Path, manifest: Manifest) -> dict[str, _Entry]:
    manifest.verify(folder)
    entries: dict[str, _Entry] = {}
    for name in manifest.files:
        if name.startswith("documents-"):
            with (folder / name).open(encoding="utf-8") as handle:
                for line in handle:
                    record = json.loads(line)
                    spans = [(start, stop) for start, stop in record.pop("spans")]
                    document = Document(**record)
                    entries[document.source] = _Entry(document, spans)
    return entries


def _chunks(documents: dict[str, _Entry]) -> dict[str, Chunk]:
    """All chunks by id, in order of documents and spans."""
    return {c.id: c for entry in documents.values() for c in chunks(entry.document, entry.spans)}


def _open_store(folder: Path, manifest: Manifest) -> Store:
    if manifest.store == "chroma":
        from gem_rag.rag.stores.chroma_store import ChromaStore as Chosen
    else:
        from gem_rag.rag.stores.faiss_store import FaissStore as Chosen  # type: ignore[assignment]
    return Chosen(folder, manifest.dim, manifest.fingerprint)


def _within(source: str, roots: Iterable[str]) -> bool:
    """Whether a source is one of the paths, a docstring of one, or in a folder of them."""
    return any(
        source == root or source.startswith((f"{root}#", f"{root}/")) or root == "."
        for root in roots
    )


@contextmanager
def _write_lock(folder: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with the process that holds it."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise GemError(f"another process is writing to {folder}: wait until it is done") from None
