"""Data sets: files, folders and hub names to checked, tokenised rows.

Everything is looked at before training begins, so that a bad row costs a second and not a night;
errors name the row. Rows live in Arrow tables (`datasets`), on disk where they are large.

Knows nothing about objectives, batches or models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.core.arrays import IntArray
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.core.truncation import truncate_or_split
from gem_rag.documents.document import Document
from gem_rag.documents.readers import read_paths
from gem_rag.errors import InputError
from gem_rag.training.recipe import COLUMNS, Evaluation, Kind, Recipe, Source

# A teacher's vectors, by the columns of texts they are of.
_TEACHER_COLUMNS: dict[Kind, dict[str, str]] = {
    "text": {"text": "vector"},
    "pairs": {"query": "query_vector", "document": "document_vector"},
}
_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Corpus:
    """One source, ready to train on.

    name: its name in the recipe.
    rows: token ids under "text" and "suffix" (text, summary, prompt) or "query", "document" and
        "negatives" (pairs); vectors where the source has some; "row", the number in the source.
    held_out: rows kept for measuring, as texts.
    cut: how many rows were longer than the maximum.
    """

    name: str
    source: Source
    rows: datasets.Dataset
    held_out: datasets.Dataset
    cut: int

    def take(self, indices: IntArray) -> list[dict[str, Any]]:
        """Rows by their places here."""
        return list(self.rows.select(indices))

    def hash(self) -> str:
        """16 hexadecimal digits that name what is trained on, token for token."""
        digest = hashlib.sha256()
        for batch in self.rows.iter(10_000):
            digest.update(json.dumps(batch, sort_keys=True).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class HeldOut:
    """Rows to measure on, as texts."""

    name: str
    kind: Kind
    rows: datasets.Dataset

    def pairs(self) -> list[tuple[str, str]]:
        """(query, document) texts: a pair's own, or the two halves of a text."""
        if self.kind == "pairs":
            return list(zip(self.rows["query"], self.rows["document"], strict=True))
        halves = (_halves(text) for text in self.rows["text"]) if self.kind == "text" else ()
        return [pair for pair in halves if pair]

    def texts(self) -> list[str]:
        """Texts to predict."""
        column = {"pairs": "document", "prompt": "answer"}.get(self.kind, "text")
        return list(self.rows[column])


def _halves(text: str) -> tuple[str, str] | None:
    """A text's two halves, cut between words; None if one would be empty."""
    words = text.split()
    middle = len(words) // 2
    return (" ".join(words[:middle]), " ".join(words[middle:])) if middle else None


def load_data(recipe: Recipe, encoder: SafeTokenizer) -> tuple[list[Corpus], list[HeldOut]]:
    """(data to train on, data to measure on), of all of a recipe's sources.

    Raises InputError naming the source, and the row, for anything that cannot be used.
    """
    corpora = [load_corpus(n, s, recipe, encoder) for n, s in recipe.data.items()]
    name = recipe.contrastive.teacher if recipe.contrastive else None
    if name:
        teacher = None if name == "columns" else load_teacher(name)
        corpora = [with_teacher(corpus, teacher, encoder) for corpus in corpora]
    given = recipe.evaluation.data
    if not given:
        return corpora, [HeldOut(c.name, c.source.kind, c.held_out) for c in corpora]
    most = recipe.evaluation.at_most
    texts = {name: read_source(name, source) for name, source in given.items()}
    return corpora, [
        HeldOut(name, given[name].kind, rows.select(range(min(most, len(rows)))))
        for name, rows in texts.items()
    ]


def load_corpus(name: str, source: Source, recipe: Recipe, encoder: SafeTokenizer) -> Corpus:
    """Read, check, split and tokenise one source.

    Raises InputError naming the source, and the row, for anything that cannot be trained on.
    """
    texts = read_source(name, source)
    held_out, kept = _split(texts, source, recipe.evaluation)
    if not len(kept):
        raise InputError(f"data {name!r} has no rows to train on: give it more")
    rows = _tokenised(kept, name, source, recipe, encoder)
    cut = int(np.sum(rows.with_format("numpy")["cut"]))
    return Corpus(name, source, rows.remove_columns("cut"), held_out, cut)


def read_source(name: str, source: Source) -> datasets.Dataset:
    """The source's rows as texts, under our names for the columns, with "row" (from 1).

    Raises InputError naming the source, and the row, for anything that cannot be used.
    """
    if source.path is None:
        raise InputError(f"data {name!r} has no path")
    table = _named(_read(name, source), name, source)
    if not len(table):
        raise InputError(f"data {name!r}: {source.path} holds no rows")
    table = table.add_column("row", np.arange(1, len(table) + 1))
    return _mapped(table, partial(_checked, name=name, source=source), f"checking {name}")


def _mapped(
    table: datasets.Dataset, change: Callable[..., Any], label: str, **options: Any
) -> datasets.Dataset:
    """`table.map`, always anew: a cache would not know what else the outcome depends on."""
    own = hashlib.md5(f"{table._fingerprint} {label}".encode()).hexdigest()[:16]
    return table.map(
        change, batched=True, desc=label, load_from_cache_file=False, new_fingerprint=own, **options
    )


def _read(name: str, source: Source) -> datasets.Dataset:
    given = str(source.path)
    path = Path(given).expanduser()
    kind = _FILES.get(path.suffix.lower())
    try:
        if path.exists() and kind is None:
            found = [d for d in read_paths([path], path) if isinstance(d, Document)]
            return datasets.Dataset.from_dict({"text": [document.text for document in found]})
        if path.exists() and kind is not None:
            return datasets.load_dataset(kind, data_files=str(path.resolve()), split="train")
        if kind is not None or given.startswith((".", "/", "~")) or given.count("/") > 1:
            raise InputError(f"there is no file or folder {given}")
        return datasets.load_dataset(given, source.subset, split=source.split)
    except InputError as error:
        raise InputError(f"data {name!r}: {error} (JSONL, Parquet, or documents)") from None
    except Exception as error:  # the library's own, and those of every reader below it
        cause = str(error.__cause__ or error).strip().split("\n")[0]
        reason = _bad_line(path) if path.suffix == ".jsonl" and path.exists() else None
        raise InputError(f"data {name!r}: {given} cannot be read: {reason or cause}") from None


def _bad_line(file: Path) -> str | None:
    """What is wrong with a JSONL file, in words; its readers count rows in their own ways."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"line {number} is no JSON object"
        except ValueError as error:
            return f"line {number} is not JSON ({error})"
    return None if any(map(str.strip, lines)) else "it is empty"


def _named(table: datasets.Dataset, name: str, source: Source) -> datasets.Dataset:
    """Our columns of the source's, under our names."""
    needed, possible = COLUMNS[source.kind]
    wanted: dict[str, str] = {}
    for column in needed + possible:
        own = source.columns.get(column, column)
        if column == "negatives" and not source.negatives:
            continue
        if own in wanted:
            raise InputError(f"data {name!r}: the columns {wanted[own]!r} and {column!r} are both "
                             f"{own!r}: name two under data.{name}.columns")  # fmt: skip
        if own in table.column_names:
            wanted[own] = column
        elif column in needed or column in source.columns or column == "negatives":
            raise InputError(
                f"data {name!r}: {source.path} has no column {own!r}"
                f"{did_you_mean(own, table.column_names)}: its columns are "
                f"{', '.join(table.column_names)}; name the right one under data.{name}.columns"
            )
    return table.select_columns(list(wanted)).rename_columns(wanted)


def _checked(batch: dict[str, list[Any]], name: str, source: Source) -> dict[str, list[Any]]:
    """The same rows, if all can be used; and a number by which rows are held out."""

    def refuse(row: int, what: str) -> InputError:
        return InputError(f"data {name!r}, row {row} of {source.path}: {what}")

    for column in COLUMNS[source.kind][0]:
        for row, text in zip(batch["row"], batch[column], strict=True):
            if not isinstance(text, str) or not text.strip():
                what = "is empty" if text is None or isinstance(text, str) else "is not text"
                raise refuse(row, f"{column!r} {what}: correct or remove the row")
    found: dict[str, list[Any]] = {}
    if source.negatives:
        found["negatives"] = []
        for row, texts in zip(batch["row"], batch["negatives"], strict=True):
            texts = texts if isinstance(texts, list) else [texts]
            texts = [t for t in texts if isinstance(t, str) and t.strip()]
            if len(texts) < source.negatives:
                raise refuse(row, f"it has {len(texts)} negatives that are texts, and "
                             f"{source.negatives} are asked for")  # fmt: skip
            found["negatives"].append(texts[: source.negatives])
    first = batch[COLUMNS[source.kind][0][0]]
    draws = [int.from_bytes(hashlib.md5(t.encode("utf-8", "replace")).digest()[:7]) for t in first]
    return {**found, "draw": draws}


def _split(
    table: datasets.Dataset, source: Source, evaluation: Evaluation
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(held out, kept), by the texts themselves: rows of the same text are on one side."""
    draws = np.asarray(table.with_format("numpy")["draw"])
    most = min(evaluation.at_most, int(evaluation.held_out * len(draws)))
    chosen = np.zeros(len(draws), dtype=bool)
    if not evaluation.data and source.kind not in ("summary", "prompt"):
        values, counts = np.unique(draws, return_counts=True)
        chosen = np.isin(draws, values[np.cumsum(counts) <= most])
    table = table.remove_columns("draw")
    return table.select(np.flatnonzero(chosen)), table.select(np.flatnonzero(~chosen))


def _tokenised(
    table: datasets.Dataset, name: str, source: Source, recipe: Recipe, encoder: SafeTokenizer
) -> datasets.Dataset:
    def tokenise(batch: dict[str, list[Any]]) -> Mapping[str, Sequence[Any]]:
        cut = _Cutter(name, source, encoder, batch["row"])
        names = _TEACHER_COLUMNS.get(source.kind, {}).values()
        vectors = {column: batch[column] for column in names if column in batch}
        if source.kind == "pairs":
            prompts, longest = recipe.prompts, recipe.max_length
            short = recipe.query_length or longest
            found: dict[str, Sequence[Any]] = {
                "query": cut(batch["query"], short, prompts["query"]),
                "document": cut(batch["document"], longest, prompts["document"]),
            }
            if source.negatives:
                texts = [text for row in batch["negatives"] for text in row]
                flat = cut(texts, longest, prompts["document"])
                found["negatives"] = [
                    flat[i : i + source.negatives] for i in range(0, len(flat), source.negatives)
                ]
        elif source.kind == "text":
            if source.overlong == "windows":
                return cut.windows(batch["text"], recipe.max_length)
            found = {"text": cut(batch["text"], recipe.max_length)}
        else:
            text, suffix = COLUMNS[source.kind][0]
            found = {
                "text": cut(batch[text], recipe.max_length),
                "suffix": cut.continuations(batch[suffix], recipe.max_length),
            }
        return {**found, **vectors, "row": batch["row"], "cut": cut.counts}

    columns = table.column_names
    rows = _mapped(table, tokenise, f"tokenising {name}", remove_columns=columns)
    if not len(rows):
        raise InputError(f"data {name!r}: no text of {source.path} has two tokens or more")
    return rows


class _Cutter:
    """Texts of a batch of rows to token ids of a bounded number; counts rows that were cut."""

    def __init__(
        self, name: str, source: Source, encoder: SafeTokenizer, rows: Sequence[int]
    ) -> None:
        self.name, self.source, self.encoder, self.rows = name, source, encoder, rows
        self.counts = [0] * len(rows)

    def __call__(self, texts: Sequence[str], size: int, prompt: str = "") -> list[list[int]]:
        if prompt and self.encoder.count_tokens(prompt) >= size:
            raise InputError(f"the prompt {prompt!r} leaves no room for a text of {size} tokens: "
                             "shorten it, or raise query_length or max_length")  # fmt: skip
        encoded = self.encoder.encode([prompt + text for text in texts])
        return self._cut([e.ids for e in encoded], size)

    def continuations(self, texts: Sequence[str], size: int) -> list[list[int]]:
        """As texts that stand behind others: nothing is put around them."""
        return self._cut([self.encoder.encode_continuation(text) for text in texts], size)

    def windows(self, texts: Sequence[str], size: int) -> Mapping[str, Sequence[Any]]:
        """Rows of all pieces of the texts."""
        found = [truncate_or_split(e, "", size, "windows") for e in self.encoder.encode(texts)]
        rows = [row for row, parts in zip(self.rows, found, strict=True) for _ in parts]
        # A piece of one token teaches nothing, and cannot be split.
        ids = [piece for parts in found for piece in parts]
        kept = [i for i, piece in enumerate(ids) if len(piece) > 1]
        return {
            "text": [ids[i] for i in kept],
            "row": [rows[i] for i in kept],
            "cut": [0] * len(kept),
        }

    def _cut(self, ids: list[list[int]], size: int) -> list[list[int]]:
        for index, tokens in enumerate(ids):
            if len(tokens) <= size:
                continue
            row = index * len(self.rows) // len(ids)  # several negatives belong to one row
            if self.source.overlong == "error":
                raise InputError(
                    f"data {self.name!r}, row {self.rows[row]} of {self.source.path}: a text has "
                    f"{len(tokens)} tokens and the recipe's maximum is {size}: shorten it, raise "
                    "max_length, or choose overlong: truncate or windows"
                )
            self.counts[row] = 1
        return [tokens[:size] for tokens in ids]


def with_teacher(corpus: Corpus, teacher: Any, encoder: SafeTokenizer) -> Corpus:
    """The corpus with a teacher's vectors of what the student reads.

    teacher: a sentence-transformers model, or None where the vectors are in the data.

    Raises InputError if vectors in the data are missing, or of different lengths.
    """
    columns = _TEACHER_COLUMNS.get(corpus.source.kind, {})  # none where nothing is embedded
    rows = corpus.rows
    if teacher is None:
        _check_vectors(corpus, list(columns.values()))
        return corpus
    for tokens, vectors in columns.items():
        texts = [encoder.decode(ids) for ids in rows[tokens]]
        found = np.asarray(teacher.encode(texts, convert_to_numpy=True), dtype=np.float32)
        if vectors in rows.column_names:
            rows = rows.remove_columns(vectors)
        rows = rows.add_column(vectors, list(found))
    return dataclasses.replace(corpus, rows=rows)


def load_teacher(name: str) -> Any:
    """A sentence-transformers model. Raises InputError if it, or the library, is not to be had."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError("a teacher needs sentence-transformers: pip install 'gem-rag[export]', or "
                         "give vectors in the data (teacher: columns)") from None  # fmt: skip
    try:
        return SentenceTransformer(name)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"teacher {name!r} cannot be loaded: {reason}") from None


def _check_vectors(corpus: Corpus, columns: Sequence[str]) -> None:
    """All vectors of a source's columns are to be of one length, and finite."""
    length = None
    for column in columns:
        if column not in corpus.rows.column_names:
            windows = " (pieces of texts have none)" if corpus.source.overlong == "windows" else ""
            raise InputError(f"data {corpus.name!r} has no column {column!r} of a teacher's "
                             f"vectors{windows}: add it, or name a teacher")  # fmt: skip
        for row, vector in zip(corpus.rows["row"], corpus.rows[column], strict=True):
            if not _is_vector(vector) or len(vector) != (length or len(vector)):
                raise InputError(f"data {corpus.name!r}, row {row}: {column!r} is no vector of "
                                 f"{length or 'any'} finite numbers")  # fmt: skip
            length = len(vector)


def _is_vector(value: Any) -> bool:
    return bool(
        isinstance(value, list)
        and value
        and all(isinstance(number, int | float) for number in value)
        and np.isfinite(value).all()
    )
