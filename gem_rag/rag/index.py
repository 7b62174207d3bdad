"""`Index`: documents made searchable by one model, kept in sync with their files.

An index decides what is committed: which documents, chunks and vectors, by which model. Stores hold
the vectors, a manifest the commit.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Unpack, get_args

import numpy as np

from gem_rag._utils.files import create_file
from gem_rag._utils.suggestions import did_you_mean
from gem_rag.core.arrays import FloatArray
from gem_rag.core.config import AnswerStyle
from gem_rag.documents.document import Chunk, Document, LeftOut, Skipped
from gem_rag.documents.readers import check_paths, read_paths
from gem_rag.documents.selection import Selection
from gem_rag.documents.splitting import Splitter
from gem_rag.errors import GemError, InputError
from gem_rag.generation.sampling import SamplingOptions
from gem_rag.model import Gem
from gem_rag.rag.answer import Answer
from gem_rag.rag.answer import answer as answer_from_hits
from gem_rag.rag.commit import (
    Commit,
    Entry,
    chunks_by_id,
    format_record,
    load_commit,
    open_store,
    read_documents,
    write_lock,
)
from gem_rag.rag.hits import Hit
from gem_rag.rag.manifest import Manifest, remove_others
from gem_rag.rag.roots import Roots, absolute, is_within_any
from gem_rag.rag.search import Ranking, SearchSettings, search
from gem_rag.rag.sync import SyncReport, find_changes

StoreName = Literal["faiss", "chroma"]
DEFAULT_CHUNK_TOKENS = 256


class Index:
    """Chunks of documents and their vectors in a folder; open one with `Index.open`.

    Safe to use from many threads; one process at a time may write.

    Attributes:
        folder: Where the index is.
        gem: The model that embeds and answers.
    """

    def __init__(self, folder: Path, gem: Gem, committed: Commit) -> None:
        self.folder = folder
        self.gem = gem
        self._committed = committed

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
        """Open an index, or create an empty one.

        Args:
            folder: Where the index is.
            gem: The model it was made with.
            store: "faiss" (default) or "chroma"; for an existing index, what it was made with.
            chunk_tokens: The most tokens in a chunk, its title included; default 256, or the most
                that the model reads.
            create: Whether a missing index is created (on disk at the first sync).

        Returns:
            The index.

        Raises:
            InputError: The folder is not an index, or the index was made with other settings.
            GemError: The index was made with another model, or is damaged.
        """
        folder = Path(folder).expanduser().absolute()
        _check_settings(gem, store, chunk_tokens)
        manifest = Manifest.read(folder) if create else Manifest.read_existing(folder)
        if manifest is None:
            tokens = chunk_tokens or min(DEFAULT_CHUNK_TOKENS, gem.max_length)
            manifest = Manifest(
                gem.name, gem.fingerprint, gem.dim, store or "faiss", tokens, dtype=gem.dtype
            )
        for name, value in (("store", store), ("chunk_tokens", chunk_tokens)):
            if value not in (None, getattr(manifest, name)):
                raise InputError(
                    f"the index in {folder} was made with {name}={getattr(manifest, name)}, not "
                    f"{value}: leave it out, or use another folder"
                )
        if manifest.fingerprint != gem.fingerprint:
            raise GemError(
                f"the index in {folder} was made by model {manifest.model!r} "
                f"({manifest.fingerprint[:12]}) and this is {gem.name!r} ({gem.fingerprint[:12]}): "
                f"use that model, or re-embed with: gem-rag index --reembed --index {folder} "
                f"--model {gem.name}"
            )
        if manifest.dtype not in ("", gem.dtype):
            warnings.warn(
                f"the index in {folder} was embedded in {manifest.dtype} and {gem.name!r} computes "
                f"in {gem.dtype}, so scores differ a little: load the model with "
                f"dtype={manifest.dtype!r}",
                stacklevel=2,
            )
        return cls(folder, gem, load_commit(folder, manifest))

    @classmethod
    def reembed(cls, folder: str | Path, gem: Gem, *, progress: bool = False) -> Index:
        """Split and embed all texts of an index again, from its own copy of them.

        For another model, or after the vectors were damaged. Until the result is committed the old
        index stays as it is.

        Args:
            folder: Where the index is.
            gem: The model to embed with.
            progress: Whether to show a progress bar.

        Raises:
            InputError: There is no index.
            GemError: As `sync`.
        """
        folder = Path(folder).expanduser().absolute()
        old = Manifest.read_existing(folder)
        with write_lock(folder):
            documents = [e.document for e in read_documents(folder, old, vectors=False).values()]
            blank = Manifest(
                gem.name,
                gem.fingerprint,
                gem.dim,
                old.store,
                min(old.chunk_tokens, gem.max_length),
                generation=old.generation,
                roots=old.roots,
                dtype=gem.dtype,
            )
            store = open_store(folder, blank)
            store.reset()
            index = cls(folder, gem, Commit(blank, {}, {}, store))
            index._commit(index._split(documents), blank.roots, progress)
        return index

    # -- reading -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many chunks the index has."""
        return len(self._committed.chunks)

    @property
    def manifest(self) -> Manifest:
        """What the index holds."""
        return self._committed.manifest

    @property
    def sources(self) -> list[str]:
        """Names of the documents in the index."""
        return sorted(self._committed.documents)

    def document(self, source: str) -> Document:
        """A document as it was indexed; raises InputError if it is not in the index."""
        if source not in self._committed.documents:
            raise InputError(f"there is no document {source!r} in the index")
        return self._committed.documents[source].document

    def search(
        self,
        question: str,
        k: int = 5,
        *,
        ranking: Ranking = "vectors",
        sources: Sequence[str] = (),
        min_score: float | None = None,
        diversity: float = 0.0,
    ) -> list[Hit]:
        """Search for the chunks nearest to a question.

        Args:
            question: What to look for.
            k: How many chunks to return.
            ranking: By "vectors", "words" or "hybrid"; this and the others as of `SearchSettings`.
            sources: Patterns of the documents to search; default all.
            min_score: The least cosine of a hit.
            diversity: From 0 to 1, against hits that are alike.

        Returns:
            k hits, or as many as there are, best first; of equal texts only the first.

        Raises:
            InputError: The index or the question is empty, or a setting is out of range.
            GemError: The store is damaged.
        """
        settings = SearchSettings(ranking, sources, min_score, diversity)
        return self._search([question], k, settings)[0]

    def search_many(
        self,
        questions: Sequence[str],
        k: int = 5,
        *,
        ranking: Ranking = "vectors",
        sources: Sequence[str] = (),
        min_score: float | None = None,
        diversity: float = 0.0,
    ) -> list[list[Hit]]:
        """As `search`, for many questions in one batch."""
        return self._search(questions, k, SearchSettings(ranking, sources, min_score, diversity))

    def _search(
        self, questions: Sequence[str], k: int, settings: SearchSettings
    ) -> list[list[Hit]]:
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}")
        if not self._committed.chunks:
            raise InputError(
                f"the index in {self.folder} is empty: add documents with gem-rag index"
            )
        queries = self.gem.embed_queries(questions)
        while True:
            commit = self._committed
            try:
                return search(commit, questions, queries, k, settings)
            except GemError:
                # A newer commit may have taken away what this one was to read.
                if self._committed is commit and not self._reload():
                    raise

    def _reload(self) -> bool:
        """Load the commit that is on disk now; False if it is the one in memory."""
        current, manifest = self._committed.manifest, Manifest.read(self.folder)
        if manifest is None or manifest.generation == current.generation:
            return False
        self._committed = load_commit(self.folder, current)
        return True

    def ask(
        self,
        question: str,
        k: int = 5,
        *,
        ranking: Ranking = "vectors",
        sources: Sequence[str] = (),
        min_score: float | None = None,
        diversity: float = 0.0,
        style: AnswerStyle | None = None,
        margin: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Answer:
        """Answer a question from the k nearest chunks, with citations.

        Args:
            question: The question.
            k: How many chunks to retrieve.
            ranking: As of `search`, like the next three.
            sources: Patterns of the documents to search.
            min_score: The least cosine of a hit.
            diversity: Against hits that are alike.
            style: "free", "checked", "quote" or "quotes"; default the model's own (see
                `gem_rag.rag.answer.answer`).
            margin: Chunks that score lower than the best one by more than this are not read;
                default the model's own.
            **sampling: As for `Gem.generate`.

        Returns:
            The answer.

        Raises:
            InputError: As `search`, or there is no such style, margin or setting.
        """
        start = time.perf_counter()
        settings = SearchSettings(ranking, sources, min_score, diversity)
        hits = self._search([question], k, settings)[0]
        search_time = time.perf_counter() - start
        answer = answer_from_hits(self.gem, question, hits, style, margin=margin, **sampling)
        documents = self._committed.documents
        citations = [
            dataclasses.replace(c, place=documents[c.source].document.place(c.span[0]))
            if c.source in documents  # a sync may have taken it away meanwhile
            else c
            for c in answer.citations
        ]
        timings = {"search": search_time, **answer.timings}
        return dataclasses.replace(answer, citations=citations, timings=timings)

    # -- writing -----------------------------------------------------------------------------

    def sync(
        self,
        items: Iterable[str | Path | Document] | str | Path | Document,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        progress: bool = False,
    ) -> SyncReport:
        """Bring the index in sync with files, folders and documents.

        New and changed texts are embedded. A document whose file is gone is removed if the file was
        in one of the paths given here; everything else stays. A file or folder that cannot be read
        is skipped, and what the index has of it stays. Searches see nothing until all of it is on
        disk; after a crash the index is as it was.

        Hidden files, what a `.gitignore` file names, `node_modules` and virtual environments are
        left out of folders; what has come to be left out is removed.

        Args:
            items: Files, folders and documents.
            include: Patterns as in a `.gitignore` file, relative to each folder: only files that
                one matches are read. Default all.
            exclude: Patterns of what is not read.
            progress: Whether to show a progress bar.

        Returns:
            What was done.

        Raises:
            InputError: A path is not there.
            GemError: Another process is writing, or the disk is full.
        """
        items = [items] if isinstance(items, str | Path | Document) else list(items)
        roots = Roots(self._recorded_roots(), self.folder.parent)
        paths = [Path(item).expanduser() for item in items if not isinstance(item, Document)]
        check_paths(paths)
        for path in paths:
            roots.add(path)
        selection = Selection(include, exclude, [self.folder])
        entries = list(
            read_paths(paths, self.folder.parent, roots.source, self._known_document, selection)
        )
        skipped = [entry for entry in entries if isinstance(entry, Skipped)]
        left_out = next((entry for entry in entries if isinstance(entry, LeftOut)), LeftOut())
        documents = {
            document.source: document
            for document in (*entries, *items)
            if isinstance(document, Document)
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_lock(self.folder):
            self._catch_up()
            self._committed.store.clean()
            indexed = self._committed.documents
            gone = self._find_gone(documents, roots, list(map(absolute, paths)), skipped)
            changes = find_changes(indexed, documents, gone)
            embedded = 0
            if changes or roots.recorded() != self._recorded_roots():
                kept = {source: e for source, e in indexed.items() if source not in gone}
                new = self._split(documents[s] for s in (*changes.added, *changes.changed))
                if kept or new or gone:
                    new_entries = kept | changes.relocated | new
                    embedded = self._commit(new_entries, roots.recorded(), progress)
        return SyncReport(
            changes.added,
            changes.changed,
            changes.gone,
            changes.unchanged,
            skipped,
            dict(left_out.kinds.most_common()),
            dict(left_out.rules.most_common()),
            len(self),
            embedded,
        )

    def remove(self, names: str | Iterable[str]) -> list[str]:
        """Remove documents.

        A file that is still in a folder comes back when the folder is synced again: exclude it.

        Args:
            names: Of documents, or of files and folders, whose documents are all removed.

        Returns:
            The sources of what was removed.

        Raises:
            InputError: The index has nothing of a name.
            GemError: Another process is writing, or the disk is full.
        """
        with write_lock(self.folder):
            self._catch_up()
            indexed = self._committed.documents
            gone: set[str] = set()
            for name in [names] if isinstance(names, str) else names:
                found = {s for s, e in indexed.items() if _is_named(e.document, name)}
                if not found:
                    raise InputError(
                        f"the index in {self.folder} has nothing named {name!r}"
                        f"{did_you_mean(name, indexed)}"
                    )
                gone |= found
            if gone:
                kept = {source: e for source, e in indexed.items() if source not in gone}
                self._commit(kept, self._recorded_roots(), progress=False)
        return sorted(gone)

    def _catch_up(self) -> None:
        """Load what another process has committed since."""
        if Manifest.read(self.folder) != self._committed.manifest:
            self._committed = load_commit(self.folder, self._committed.manifest)

    def _recorded_roots(self) -> dict[str, str]:
        return self._committed.manifest.roots

    def _known_document(self, source: str) -> Document | None:
        entry = self._committed.documents.get(source)
        return entry.document if entry else None

    def _find_gone(
        self,
        documents: dict[str, Document],
        roots: Roots,
        paths: Sequence[Path],
        skipped: Sequence[Skipped],
    ) -> set[str]:
        """Sources of files below the synced paths that are not there any more."""
        unread = [roots.path_of(skip.source) for skip in skipped]

        def is_gone(source: str, document: Document) -> bool:
            if source in documents or not document.file:
                return False
            path = roots.path_of(document.file)
            return is_within_any(path, paths) and not is_within_any(path, unread)

        return {s for s, e in self._committed.documents.items() if is_gone(s, e.document)}

    def _split(self, documents: Iterable[Document]) -> dict[str, Entry]:
        splitter = Splitter(self.gem.tokenizer, self._committed.manifest.chunk_tokens)
        return {d.source: Entry(d, splitter.split(d)) for d in documents}

    def _commit(self, documents: dict[str, Entry], roots: dict[str, str], progress: bool) -> int:
        """Make these the index's documents, or leave the index as it was if the disk fails.

        Returns:
            How many chunks had to be embedded.

        Raises:
            GemError: The disk is full or fails.
        """
        chunks = chunks_by_id(documents)
        new_ids = [id for id in chunks if id not in self._committed.chunks]
        vectors, embedded = self._embed_chunks([chunks[id] for id in new_ids], progress)
        try:
            self._write(documents, chunks, new_ids, vectors, roots)
        except OSError as error:
            raise GemError(
                f"could not write {self.folder} ({error.strerror}): the index is as it was before"
            ) from error
        return embedded

    def _write(
        self,
        documents: dict[str, Entry],
        chunks: dict[str, Chunk],
        new_ids: Sequence[str],
        vectors: FloatArray,
        roots: dict[str, str],
    ) -> None:
        old = self._committed
        generation = old.manifest.generation + 1
        file = self.folder / f"documents-{generation}.jsonl"
        with create_file(file) as handle:
            for entry in documents.values():
                handle.write(format_record(entry))
        files = old.store.stage(list(chunks), new_ids, vectors, generation)
        manifest = dataclasses.replace(
            old.manifest,
            generation=generation,
            documents=len(documents),
            chunks=len(chunks),
            roots=roots,
        ).commit(self.folder, [file, *files])
        store = open_store(self.folder, manifest)
        store.load(list(chunks), generation)
        self._committed = Commit(manifest, documents, chunks, store)
        remove_others(self.folder, "documents-*.jsonl", manifest.files)
        store.clean()

    def _embed_chunks(self, chunks: list[Chunk], progress: bool) -> tuple[FloatArray, int]:
        """Vectors of new chunks, reused if the same passage was in the index elsewhere; and how
        many were computed."""
        id_of = {chunk.passage: id for id, chunk in self._committed.chunks.items()}
        vectors = np.empty((len(chunks), self.gem.dim), dtype=np.float32)
        moved = [i for i, chunk in enumerate(chunks) if chunk.passage in id_of]
        new = [i for i, chunk in enumerate(chunks) if chunk.passage not in id_of]
        if moved:
            known = [id_of[chunks[i].passage] for i in moved]
            vectors[moved] = self._committed.store.vectors(known)
        if new:
            texts = [chunks[i].passage for i in new]
            vectors[new] = self.gem.embed_documents(texts, progress=progress)
        return vectors, len(new)


def _is_named(document: Document, name: str) -> bool:
    """Whether a name is the document's, its file's, or that of a folder that the file is in."""
    name = name.removesuffix("/")
    return name in (document.source, document.file) or document.file.startswith(f"{name}/")


def _check_settings(gem: Gem, store: str | None, chunk_tokens: int | None) -> None:
    if store is not None and store not in get_args(StoreName):
        raise InputError(f"there is no store {store!r}: use {' or '.join(get_args(StoreName))}")
    if chunk_tokens is not None and not 16 <= chunk_tokens <= gem.max_length:
        raise InputError(
            f"chunk_tokens must be from 16 to {gem.max_length}, what the model reads at once; "
            f"not {chunk_tokens}"
        )
