"""`Corpus`: one source's rows as token ids, ready to train on, and the rows that are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np

from gem_rag.core.arrays import IntArray
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.core.truncation import BETWEEN, prefix_length, token_spans, truncate_or_split
from gem_rag.errors import InputError
from gem_rag.training.recipe import COLUMNS, TEACHER_COLUMNS, Evaluation, Kind, Recipe, Source
from gem_rag.training.sources import map_rows, read_source


@dataclass(frozen=True)
class Corpus:
    """One source, ready to train on.

    Attributes:
        name: Its name in the recipe.
        source: Its settings in the recipe.
        rows: Token ids under "text" and "suffix" (text, summary, prompt) or "query", "document" and
            "negatives" (pairs), and "start", the first token of a document after its context;
            vectors if the source has some; "row", the number in the source.
        held_out: Rows kept for measuring, as texts.
        num_truncated: How many rows were longer than the maximum.
    """

    name: str
    source: Source
    rows: datasets.Dataset
    held_out: datasets.Dataset
    num_truncated: int

    def take(self, indices: IntArray) -> list[dict[str, Any]]:
        """The rows at some indices."""
        return list(self.rows.select(indices))

    def hash(self) -> str:
        """16 hexadecimal digits that identify what is trained on, token for token."""
        digest = hashlib.sha256()
        for batch in self.rows.iter(10_000):
            digest.update(json.dumps(batch, sort_keys=True).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class HeldOut:
    """Rows to measure on, as texts.

    Attributes:
        name: Of their source.
        kind: Theirs.
        rows: The rows.
        others: Documents that nothing asks for, which stand in the collection to be confused with.
    """

    name: str
    kind: Kind
    rows: datasets.Dataset
    others: tuple[str, ...] = ()

    def pairs(self) -> list[tuple[str, str]]:
        """(query, document) texts: pairs as they are, or the two halves of each text."""
        if self.kind == "pairs":
            return list(zip(self.rows["query"], self.rows["document"], strict=True))
        halves = (_split_in_half(text) for text in self.rows["text"]) if self.kind == "text" else ()
        return [pair for pair in halves if pair]

    def texts(self) -> list[str]:
        """Texts to predict."""
        column = {"pairs": "document", "prompt": "answer"}.get(self.kind, "text")
        return list(self.rows[column])


def _split_in_half(text: str) -> tuple[str, str] | None:
    """Split a text between two words; None if it has fewer than two."""
    words = text.split()
    middle = len(words) // 2
    return (" ".join(words[:middle]), " ".join(words[middle:])) if middle else None


def load_corpus(name: str, source: Source, recipe: Recipe, tokenizer: SafeTokenizer) -> Corpus:
    """Read, check, split and tokenize one source.

    Args:
        name: Its name in the recipe.
        source: Its settings in the recipe.
        recipe: The recipe.
        tokenizer: The model's tokenizer.

    Returns:
        The corpus.

    Raises:
        InputError: Something cannot be trained on; the message names the source and the row.
    """
    texts = read_source(name, source)
    held_out, kept = _split_held_out(texts, source, recipe.evaluation)
    if not len(kept):
        raise InputError(f"data {name!r} has no rows to train on: give it more")
    rows = map_rows(
        kept,
        partial(_tokenize_rows, name=name, source=source, recipe=recipe, tokenizer=tokenizer),
        f"tokenizing {name}",
        remove_columns=kept.column_names,
    )
    if not len(rows):
        raise InputError(f"data {name!r}: no text of {source.path} has two tokens or more")
    num_truncated = int(np.sum(rows.with_format("numpy")["truncated"]))
    return Corpus(name, source, rows.remove_columns("truncated"), held_out, num_truncated)


def _split_held_out(
    table: datasets.Dataset, source: Source, evaluation: Evaluation
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(held out, kept), by the texts themselves: rows of the same text are on the same side."""
    draws = np.asarray(table.with_format("numpy")["draw"])
    limit = min(evaluation.max_rows, int(evaluation.held_out * len(draws)))
    is_held_out = np.zeros(len(draws), dtype=bool)
    if not evaluation.data and source.kind not in ("summary", "prompt"):
        values, counts = np.unique(draws, return_counts=True)
        is_held_out = np.isin(draws, values[np.cumsum(counts) <= limit])
    table = table.remove_columns("draw")
    return table.select(np.flatnonzero(is_held_out)), table.select(np.flatnonzero(~is_held_out))


def _tokenize_rows(
    batch: dict[str, list[Any]],
    name: str,
    source: Source,
    recipe: Recipe,
    tokenizer: SafeTokenizer,
) -> Mapping[str, Sequence[Any]]:
    """Columns of token ids for columns of texts; adds "truncated", 1 for rows that were."""
    tokenize = _RowTokenizer(name, source, tokenizer, batch["row"])
    max_length = recipe.max_length
    if source.truncation == "windows":  # of kind text only
        return tokenize.split_into_windows(batch["text"], max_length)
    columns: dict[str, Sequence[Any]] = {}
    if source.kind == "pairs":
        query_length = recipe.query_length or max_length
        columns["query"] = tokenize(batch["query"], query_length, recipe.prompts["query"])
        prompt = recipe.prompts["document"]
        if "context" in batch:
            columns |= tokenize.after_contexts(
                batch["document"], batch["context"], max_length, prompt
            )
        else:
            columns["document"] = tokenize(batch["document"], max_length, prompt)
        if recipe.contrastive and recipe.contrastive.mask_same_source:
            columns["source"] = _sources(batch, name, source)
        if source.negatives:
            texts = [text for row in batch["negatives"] for text in row]
            ids = tokenize(texts, max_length, prompt)
            starts = range(0, len(ids), source.negatives)
            columns["negatives"] = [ids[i : i + source.negatives] for i in starts]
    elif source.kind == "text":
        columns["text"] = tokenize(batch["text"], max_length)
    else:
        text, suffix = COLUMNS[source.kind][0]
        columns["text"] = tokenize(batch[text], max_length)
        columns["suffix"] = tokenize.tokenize_continuations(batch[suffix], max_length)
    for vectors in TEACHER_COLUMNS.get(source.kind, {}).values():
        if vectors in batch:
            columns[vectors] = batch[vectors]
    return {**columns, "row": batch["row"], "truncated": tokenize.truncated}


def _sources(batch: dict[str, list[Any]], name: str, source: Source) -> list[str]:
    """Which documents rows are of."""
    if "source" not in batch:
        raise InputError(
            f"data {name!r} has no column 'source', which contrastive.mask_same_source needs: name "
            f"it under data.{name}.columns, or leave mask_same_source out"
        )
    for row, value in zip(batch["row"], batch["source"], strict=True):
        if value is None or not str(value).strip():
            raise InputError(
                f"data {name!r}, row {row} of {source.path}: 'source' is empty, and "
                "contrastive.mask_same_source needs it: name the row's document, or leave "
                "mask_same_source out"
            )
    return [str(value) for value in batch["source"]]


class _RowTokenizer:
    """Tokenizes the texts of a batch of rows, and marks the rows that were truncated."""

    def __init__(
        self, name: str, source: Source, tokenizer: SafeTokenizer, rows: Sequence[int]
    ) -> None:
        self.name, self.source, self.tokenizer, self.rows = name, source, tokenizer, rows
        self.truncated = [0] * len(rows)

    def __call__(self, texts: Sequence[str], max_length: int, prompt: str = "") -> list[list[int]]:
        if prompt and len(self.tokenizer.encode_prompted(prompt, [""])[0]) >= max_length:
            raise InputError(
                f"the prompt {prompt!r} leaves no room for a text of {max_length} tokens: shorten "
                "it, or raise query_length or max_length"
            )
        encoded = self.tokenizer.encode_prompted(prompt, texts)
        return self._truncate([e.ids for e in encoded], max_length)

    def tokenize_continuations(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Tokenize texts that follow others: nothing is added around them."""
        ids = [self.tokenizer.encode_continuation(text) for text in texts]
        return self._truncate(ids, max_length)

    def after_contexts(
        self,
        texts: Sequence[str],
        contexts: Sequence[str | None],
        max_length: int,
        prompt: str,
    ) -> Mapping[str, Sequence[Any]]:
        """Columns "document", texts with as much of their contexts as fits before them, and
        "start", the first token of the text itself."""
        ids, starts = [], []
        before = [f"{context}{BETWEEN}" if context else "" for context in contexts]
        encodings = self.tokenizer.encode_prompted(
            prompt, [b + text for b, text in zip(before, texts, strict=True)]
        )
        for encoding, b, text in zip(encodings, before, texts, strict=True):
            span = (len(b), len(b) + len(text))
            [(start, stop)] = token_spans(encoding, [span], len(prompt), span[1])
            head = prefix_length(encoding, prompt)
            first = min(max(head, stop - (max_length - head)), max(start, head))
            ids.append(encoding.ids[:head] + encoding.ids[first:stop])
            starts.append(start - first + head if start else 0)
        return {"document": self._truncate(ids, max_length), "start": starts}

    def split_into_windows(
        self, texts: Sequence[str], max_length: int
    ) -> Mapping[str, Sequence[Any]]:
        """Rows of all windows of the texts."""
        windows = [
            (window, row)
            for encoding, row in zip(self.tokenizer.encode(texts), self.rows, strict=True)
            for window in truncate_or_split(encoding, "", max_length, "windows")
            if len(window) > 1  # a single token teaches nothing, and cannot be split
        ]
        return {
            "text": [window for window, _ in windows],
            "row": [row for _, row in windows],
            "truncated": [0] * len(windows),
        }

    def _truncate(self, ids: list[list[int]], max_length: int) -> list[list[int]]:
        for index, tokens in enumerate(ids):
            if len(tokens) <= max_length:
                continue
            row = index * len(self.rows) // len(ids)  # several negatives belong to one row
            if self.source.truncation == "error":
                raise InputError(
                    f"data {self.name!r}, row {self.rows[row]} of {self.source.path}: a text has "
                    f"{len(tokens)} tokens and the recipe's maximum is {max_length}: shorten it, "
                    "raise max_length, or choose truncation: truncate or windows"
                )
            self.truncated[row] = 1
        return [tokens[:max_length] for tokens in ids]
