"""`Index`: documents made searchable by one model, kept in sync with their files."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

from gem_rag._utils.progress import progress_bar, told
from gem_rag._utils.suggestions import did_you_mean
from gem_rag.core.arrays import FloatArray
from gem_rag.core.config import AnswerStyle, GemConfig
from gem_rag.documents.document import Document
from gem_rag.documents.readers import check_paths, count_files, read_paths
from gem_rag.documents.selection import Selection
from gem_rag.errors import GemError, InputError
from gem_rag.generation.sampling import SamplingOptions
from gem_rag.model import Gem
from gem_rag.rag.answer import Answer
from gem_rag.rag.answer import answer as answer_from_hits
from gem_rag.rag.asked import AskedCounts
from gem_rag.rag.citations import Citation
from gem_rag.rag.commit import Commit
from gem_rag.rag.conditions import Where, check_where, satisfies
from gem_rag.rag.doctor import Finding, examine
from gem_rag.rag.hits import Hit
from gem_rag.rag.manifest import Manifest
from gem_rag.rag.prefill import FOLDER as PREFILL
from gem_rag.rag.prefill import MAX_BYTES as PREFILL_BYTES
from gem_rag.rag.prefill import KeptPrefill, keep_prefill, most_asked
from gem_rag.rag.reranking import rerank
from gem_rag.rag.roots import Roots, absolute
from gem_rag.rag.search import SearchOptions, SearchSettings, search
from gem_rag.rag.storage import Storage
from gem_rag.rag.sync import Sync, SyncReport
from gem_rag.rag.writer import Embedder, Writer

StoreName = Literal["faiss", "chroma"]
DEFAULT_CHUNK_TOKENS = 256


class AskOptions(SearchOptions, SamplingOptions, total=False):
    """Options of a search and of generation."""


class Index:
    """Chunks of documents and their vectors in a folder; open one with `Index.open`.

    Safe to use from many threads; one process at a time may write.

    Attributes:
        folder: Where the index is.
        gem: The model that embeds and answers.
    """

    def __init__(self, folder: Path, gem: Gem, storage: Storage) -> None:
        self.folder = folder
        self.gem = gem
        self._storage = storage
        self._asked = AskedCounts(folder)
        if (folder / PREFILL).is_dir():
            gem.use_prefixes(folder / PREFILL)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        gem: Gem,
        store: StoreName | None = None,
        *,
        chunk_tokens: int | None = None,
        context_tokens: int | None = None,
        create: bool = True,
    ) -> Index:
        """Open an index, or create an empty one.

        Args:
            folder: Where the index is.
            gem: The model it was made with.
            store: "faiss" (default) or "chroma"; for an existing index, what it was made with.
            chunk_tokens: The most tokens in a chunk, its title included; default 256, or the most
                that the model reads.
            context_tokens: A chunk's vector is made after reading those before it in its document,
                up to so many tokens together, in one pass for all of them; default 0, each chunk
                by itself. For models that were trained to (`context` of pairs).
            create: Whether a missing index is created (on disk at the first sync).

        Returns:
            The index.

        Raises:
            InputError: The folder is not an index, or the index was made with other settings.
            GemError: The index was made with another model, or is damaged.
        """
        folder = Path(folder).expanduser().absolute()
        _check_settings(gem, store, chunk_tokens, context_tokens)
        manifest = Manifest.read(folder) if create else Manifest.read_existing(folder)
        if manifest is None:
            tokens = chunk_tokens or min(DEFAULT_CHUNK_TOKENS, gem.max_document_tokens)
            manifest = Manifest(
                gem.name, gem.fingerprint, gem.dim, store or "faiss", tokens,
                dtype=gem.dtype, context_tokens=context_tokens or 0,
            )  # fmt: skip
        given = {"store": store, "chunk_tokens": chunk_tokens, "context_tokens": context_tokens}
        for name, value in given.items():
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
        index = cls(folder, gem, Storage(folder, manifest, gem))
        index._storage.read(lambda commit: None)  # whether it can be
        return index

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
        blank = Manifest(
            gem.name,
            gem.fingerprint,
            gem.dim,
            old.store,
            min(old.chunk_tokens, gem.max_document_tokens),
            generation=old.generation,
            roots=old.roots,
            dtype=gem.dtype,
            context_tokens=min(old.context_tokens, gem.max_document_tokens),
        )
        storage = Storage(folder, blank, gem)
        with progress_bar("Embedding", old.chunks, progress) as advance:
            storage.reembed(old, advance)
        return cls(folder, gem, storage)

    # -- reading -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many chunks the index has."""
        return self.manifest.chunks

    @property
    def manifest(self) -> Manifest:
        """What the index holds."""
        return self._storage.read(lambda commit: commit.manifest)

    @property
    def sources(self) -> list[str]:
        """Names of the documents in the index."""
        return self._storage.read(Commit.sources)

    def select(self, where: Where) -> list[str]:
        """Names of the documents whose metadata satisfy conditions, as of a search."""
        check_where(where)
        return self._storage.read(
            lambda commit: [
                source
                for source, metadata in commit.metadata()
                if satisfies(json.loads(metadata), where)
            ]
        )

    def document(self, source: str) -> Document:
        """A document as it was indexed; raises InputError if it is not in the index."""
        document = self._storage.read(lambda commit: commit.document(source))
        if document is None:
            raise InputError(f"there is no document {source!r} in the index")
        return document

    def search(self, question: str, k: int = 5, **options: Unpack[SearchOptions]) -> list[Hit]:
        """Search for the chunks nearest to a question.

        Args:
            question: What to look for.
            k: How many chunks to return.
            **options: Fields of `SearchSettings`: which ranking, which documents, how near.

        Returns:
            k hits, or as many as there are, best first; of equal texts only the first.

        Raises:
            InputError: The index or the question is empty, or a setting is out of range.
            GemError: The store is damaged.
        """
        return self.search_many([question], k, **options)[0]

    def search_many(
        self,
        questions: Sequence[str],
        k: int = 5,
        *,
        vectors: FloatArray | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[list[Hit]]:
        """As `search`, for many questions in one batch.

        Args:
            questions: What to look for.
            k: How many chunks to return for each.
            vectors: Of the questions, unit rows [questions, dim], of the index's model; default
                what it makes of them. With these a question may be empty, and no words are sought.
            **options: As for `search`.

        Returns:
            Hits, as of `search`, for each question.

        Raises:
            InputError: As `search`, or there is not one such vector for each question.
        """
        settings = SearchSettings(**options)
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}")
        if not len(self):
            raise InputError(
                f"the index in {self.folder} is empty: add documents with gem-rag index"
            )
        queries = self.gem.embed_queries(questions) if vectors is None else vectors
        if queries.shape != (len(questions), self.gem.dim):
            raise InputError(
                f"vectors of {len(questions)} questions by {self.gem.name!r} are of the shape "
                f"({len(questions)}, {self.gem.dim}), not {queries.shape}: embed with that model"
            )
        depth = max(k, settings.reranked)
        found = self._storage.read(
            lambda commit: search(commit, questions, queries, depth, settings)
        )
        if settings.reranked:
            found = [
                self._rerank(question, hits, settings.reranked)
                for question, hits in zip(questions, found, strict=True)
            ]
        return [hits[:k] for hits in found]

    def _rerank(self, question: str, hits: list[Hit], count: int) -> list[Hit]:
        """The best hits in a better order, and the others."""
        return [*rerank(self.gem, question, hits[:count]), *hits[count:]]

    def ask(
        self,
        question: str,
        k: int = 5,
        *,
        style: AnswerStyle | None = None,
        margin: float | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:
        """Answer a question from the k nearest chunks, with citations.

        Args:
            question: The question.
            k: How many chunks to retrieve.
            style: "free", "checked", "quote", "quotes" or "sentences"; default the model's own
                (see `gem_rag.rag.answer.answer`).
            margin: Chunks that score lower than the best one by more than this are not read;
                default the model's own.
            **options: As for `search`, and as for `Gem.generate`. `min_score` is by default the
                model's own (`answer_min_score`); -1 is none.

        Returns:
            The answer.

        Raises:
            InputError: As `search`, or there is no such style, margin or setting.
        """
        start = time.perf_counter()
        searching, sampling = split_options(options, self.gem.config)
        hits = self.search(question, k, **searching)
        search_time = time.perf_counter() - start
        answer = answer_from_hits(self.gem, question, hits, style, margin=margin, **sampling)
        citations = self.locate(answer.citations)
        self.count_asked(answer)
        timings = {"search": search_time, **answer.timings}
        return dataclasses.replace(answer, citations=citations, timings=timings)

    def locate(self, citations: Sequence[Citation]) -> list[Citation]:
        """Citations with their places in the documents' files, as far as these are in the index."""
        return self._storage.read(lambda commit: commit.locate(citations))

    def count_asked(self, answer: Answer) -> None:
        """Count the documents that an answer rests on: of the best passage, and of what it cites.
        `ask` and conversations do so."""
        cited = [citation.source for citation in answer.citations]
        self._asked.add([*(hit.chunk.source for hit in answer.hits[:1]), *cited])

    # -- writing -----------------------------------------------------------------------------

    def keep_prefill(self, documents: int, *, max_bytes: int = PREFILL_BYTES) -> KeptPrefill:
        """Keep keys and values of the most asked documents' chunks beside the index.

        Answers whose best passage is one of these chunks begin sooner, and are the same. What was
        kept of other documents, or of what these were before they changed, is removed.

        Args:
            documents: How many; before anything has been asked, the first ones.
            max_bytes: Of all files, which are written until there is no room.

        Returns:
            What is kept.

        Raises:
            InputError: The number is negative, the engine keeps none (vLLM has a prefix cache of
                its own), or the model's answer prompt has no fixed beginning.
            GemError: The index is damaged.
        """
        if documents < 0:
            raise InputError(f"the number of documents must be 0 or more, not {documents}")
        asked = self._asked.most()
        passages = self._storage.read(lambda commit: most_asked(commit, asked, documents))
        return keep_prefill(self.folder, self.gem, passages, max_bytes)

    def sync(
        self,
        items: Iterable[str | Path | Document] | str | Path | Document,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        embedder: Embedder | None = None,
        progress: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
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
            embedder: Embeds instead of the index's model: a `RayEmbedder` with copies of it.
            progress: Whether to show a progress bar.
            on_progress: Told, whenever a file has been read, how many have been, and of how many.

        Returns:
            What was done.

        Raises:
            InputError: A path is not there.
            GemError: Another process is writing, or the disk is full.
        """
        items = [items] if isinstance(items, str | Path | Document) else list(items)
        paths = [Path(item).expanduser() for item in items if not isinstance(item, Document)]
        check_paths(paths)
        selection = Selection(include, exclude, [self.folder])
        files = count_files(paths, selection) if progress or on_progress else 0
        with (
            progress_bar("Embedding", files, progress) as shown,
            self._storage.writing(Writer, embedder) as (commit, writer),
        ):
            roots = Roots(commit.manifest.roots, self.folder.parent)
            for path in paths:
                roots.add(path)
            sync = Sync(commit, writer, told(shown, files, on_progress))
            for entry in read_paths(
                paths, self.folder.parent, roots.source, commit.document, selection
            ):
                sync.take(entry)
            for item in items:
                if isinstance(item, Document):
                    sync.take(item)
            sync.remove_gone(roots, list(map(absolute, paths)))
            is_changed = sync.has_changes or roots.recorded() != commit.manifest.roots
            if is_changed and (sync.has_changes or commit.manifest.documents):
                writer.commit(roots.recorded())
        return sync.report(len(self))

    def remove(self, names: str | Iterable[str]) -> list[str]:
        """Remove documents.

        A file that is still in a folder comes back when the folder is synced again: exclude it.

        Args:
            names: Of documents, or of files and folders, whose documents are all removed; of a
                document made in Python and a folder of the same name, the former.

        Returns:
            The sources of what was removed.

        Raises:
            InputError: The index has nothing of a name.
            GemError: Another process is writing, or the disk is full.
        """
        with self._storage.writing(Writer) as (commit, writer):
            indexed = dict(commit.files())
            gone: set[str] = set()
            for name in [names] if isinstance(names, str) else names:
                if indexed.get(name) == "":  # made in Python: a store may have very many
                    found = {name}
                else:
                    found = {s for s, file in indexed.items() if _is_named(s, file, name)}
                if not found:
                    raise InputError(
                        f"the index in {self.folder} has nothing named {name!r}"
                        f"{did_you_mean(name, indexed)}"
                    )
                gone |= found
            for source in gone:
                writer.remove(source)
            if gone:
                writer.commit(commit.manifest.roots)
        return sorted(gone)

    def examine(self, *, repair: bool = False) -> list[Finding]:
        """Read all of the index, and find what is wrong with it; see `gem_rag.rag.doctor.examine`.

        Args:
            repair: Whether to put right what can be.

        Raises:
            GemError: The database is damaged; or, to repair, another process is writing.
        """
        return examine(self._storage, repair=repair)


def split_options(options: AskOptions, config: GemConfig) -> tuple[SearchOptions, SamplingOptions]:
    """The options of a search for an answer, and the others; the checkpoint has a `min_score`."""
    given: dict[str, Any] = dict(options)
    searching: Any = {
        name: given.pop(name) for name in SearchOptions.__annotations__ & given.keys()
    }
    if searching.get("min_score") is None:
        searching["min_score"] = config.answer_min_score
    sampling: Any = given
    return searching, sampling


def _is_named(source: str, file: str, name: str) -> bool:
    """Whether a name is the document's, its file's, or that of a folder that the file is in."""
    name = name.removesuffix("/")
    return name in (source, file) or file.startswith(f"{name}/")


def _check_settings(
    gem: Gem, store: str | None, chunk_tokens: int | None, context_tokens: int | None
) -> None:
    if store is not None and store not in get_args(StoreName):
        raise InputError(f"there is no store {store!r}: use {' or '.join(get_args(StoreName))}")
    most = gem.max_document_tokens
    if chunk_tokens is not None and not 16 <= chunk_tokens <= most:
        raise InputError(
            f"chunk_tokens must be from 16 to {most}, what the model reads at once; "
            f"not {chunk_tokens}"
        )
    least = chunk_tokens or min(DEFAULT_CHUNK_TOKENS, most)
    if context_tokens and not least < context_tokens <= most:
        raise InputError(
            f"context_tokens must be 0, or more than chunk_tokens ({least}) and at most "
            f"{most}, what the model reads at once; not {context_tokens}"
        )
