"""`Corpus`: one source's rows as token ids, ready to train on, and the rows that are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from gem_rag.core.arrays import IntArray
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.core.truncation import truncate_or_split
from gem_rag.errors import InputError
from gem_rag.training.recipe import COLUMNS, TEACHER_COLUMNS, Evaluation, Kind, Recipe, Source
from gem_rag.training.sources import map_rows, read_source


@dataclass(frozen=True)
class Corpus:
    """One source, ready to train on.

    Attributes:
        name: Its name in the recipe.
        source: What the recipe says of it.
        rows: Token ids under "text" and "suffix" (text, summary, prompt) or "query", "document" and
            "negatives" (pairs); vectors if the source has some; "row", the number in the source.
        held_out: Rows kept for measuring, as texts.
        cut: How many rows were longer than the maximum.
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
        """16 hexadecimal digits that identify what is trained on, token for token."""
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


def load_corpus(name: str, source: Source, recipe: Recipe, tokenizer: SafeTokenizer) -> Corpus:
    """Read, check, split and tokenize one source.

    Raises:
        InputError: Something cannot be trained on; the message names the source and the row.
    """
    texts = read_source(name, source)
    held_out, kept = _split(texts, source, recipe.evaluation)
    if not len(kept):
        raise InputError(f"data {name!r} has no rows to train on: give it more")
    rows = _tokenize(kept, name, source, recipe, tokenizer)
    cut = int(np.sum(rows.with_format("numpy")["cut"]))
    return Corpus(name, source, rows.remove_columns("cut"), held_out, cut)


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


def _tokenize(
    table: datasets.Dataset, name: str, source: Source, recipe: Recipe, tokenizer: SafeTokenizer
) -> datasets.Dataset:
    def tokenize_batch(batch: dict[str, list[Any]]) -> Mapping[str, Sequence[Any]]:
        tokenize = _RowTokenizer(name, source, tokenizer, batch["row"])
        names = TEACHER_COLUMNS.get(source.kind, {}).values()
        vectors = {column: batch[column] for column in names if column in batch}
        if source.kind == "pairs":
            prompts, longest = recipe.prompts, recipe.max_length
            short = recipe.query_length or longest
            found: dict[str, Sequence[Any]] = {
                "query": tokenize(batch["query"], short, prompts["query"]),
                "document": tokenize(batch["document"], longest, prompts["document"]),
            }
            if source.negatives:
                texts = [text for row in batch["negatives"] for text in row]
                flat = tokenize(texts, longest, prompts["document"])
                found["negatives"] = [
                    flat[i : i + source.negatives] for i in range(0, len(flat), source.negatives)
                ]
        elif source.kind == "text":
            if source.truncation == "windows":
                return tokenize.windows(batch["text"], recipe.max_length)
            found = {"text": tokenize(batch["text"], recipe.max_length)}
        else:
            text, suffix = COLUMNS[source.kind][0]
            found = {
                "text": tokenize(batch[text], recipe.max_length),
                "suffix": tokenize.continuations(batch[suffix], recipe.max_length),
            }
        return {**found, **vectors, "row": batch["row"], "cut": tokenize.truncated}

    columns = table.column_names
    rows = map_rows(table, tokenize_batch, f"tokenizing {name}", remove_columns=columns)
    if not len(rows):
        raise InputError(f"data {name!r}: no text of {source.path} has two tokens or more")
    return rows


class _RowTokenizer:
    """Tokenizes the texts of a batch of rows, and counts the rows that were truncated."""

    def __init__(
        self, name: str, source: Source, tokenizer: SafeTokenizer, rows: Sequence[int]
    ) -> None:
        self.name, self.source, self.tokenizer, self.rows = name, source, tokenizer, rows
        self.truncated = [0] * len(rows)

    def __call__(self, texts: Sequence[str], size: int, prompt: str = "") -> list[list[int]]:
        if prompt and self.tokenizer.count_tokens(prompt) >= size:
            raise InputError(f"the prompt {prompt!r} leaves no room for a text of {size} tokens: "
                             "shorten it, or raise query_length or max_length")  # fmt: skip
        encoded = self.tokenizer.encode([prompt + text for text in texts])
        return self._truncate([e.ids for e in encoded], size)

    def continuations(self, texts: Sequence[str], size: int) -> list[list[int]]:
        """Tokenize texts that follow others: nothing is added around them."""
        return self._truncate([self.tokenizer.encode_continuation(text) for text in texts], size)

    def windows(self, texts: Sequence[str], size: int) -> Mapping[str, Sequence[Any]]:
        """Rows of all windows of the texts."""
        found = [truncate_or_split(e, "", size, "windows") for e in self.tokenizer.encode(texts)]
        rows = [row for row, parts in zip(self.rows, found, strict=True) for _ in parts]
        # A piece of one token teaches nothing, and cannot be split.
        ids = [piece for parts in found for piece in parts]
        kept = [i for i, piece in enumerate(ids) if len(piece) > 1]
        return {
            "text": [ids[i] for i in kept],
            "row": [rows[i] for i in kept],
            "cut": [0] * len(kept),
        }

    def _truncate(self, ids: list[list[int]], size: int) -> list[list[int]]:
        for index, tokens in enumerate(ids):
            if len(tokens) <= size:
                continue
            row = index * len(self.rows) // len(ids)  # several negatives belong to one row
            if self.source.truncation == "error":
                raise InputError(
                    f"data {self.name!r}, row {self.rows[row]} of {self.source.path}: a text has "
                    f"{len(tokens)} tokens and the recipe's maximum is {size}: shorten it, raise "
                    "max_length, or choose truncation: truncate or windows"
                )
            self.truncated[row] = 1
        return [tokens[:size] for tokens in ids]
