"""Batches: a pure function of the recipe, the data and the number of the step.

Nothing depends on what ran before, so a resumed run sees the batches of an uninterrupted one, and
several processes split the batch that one process would have. All of them get the same number of
passes, as sharded training requires.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from gem_rag.core.arrays import IntArray
from gem_rag.core.layout import Layout, Role, Row, plan_batches
from gem_rag.errors import InputError
from gem_rag.training import rows
from gem_rag.training.corpus import Corpus
from gem_rag.training.recipe import Recipe
from gem_rag.training.schedule import alpha, only_aligns, raw_share


class Pass(NamedTuple):
    """One forward pass of a process.

    Attributes:
        layout: The rows.
        labels: What each position predicts (`rows.next_token_labels`), int64 [B, T]; None if only
            vectors are needed.
        raw: Which rows are plain text, bool [B].
    """

    layout: Layout
    labels: IntArray | None
    raw: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Contrast:
    """The contrastive part of a step: every process embeds its share, and compares all vectors.

    Attributes:
        passes: Of this process's queries, documents and negatives.
        order: For each row, in the order of the passes, its number among queries, then documents,
            then negatives.
        num_queries: How many of this process's rows are queries; the same in every process.
        positive: The column of each query's document, int64 [queries of all processes].
        false_negatives: Documents that are relevant too and must not count as negatives: bool
            [queries of all processes, documents of all processes].
        teacher: A teacher's vectors of all queries and of their documents, or None.
    """

    passes: list[Pass]
    order: list[int]
    num_queries: int
    positive: IntArray
    false_negatives: npt.NDArray[np.bool_]
    teacher: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None


@dataclass(frozen=True)
class Batch:
    """One step of one process.

    Attributes:
        step: Its number.
        alpha: Weight of the contrastive loss.
        next_token: Passes of rows to predict.
        num_targets: How many tokens the rows of all processes predict.
        num_raw_targets: How many of them are in raw rows.
        contrast: None while alpha is 0.
        row_names: SOURCE:ROW of the rows that all processes train on, for errors.
    """

    step: int
    alpha: float
    next_token: list[Pass]
    num_targets: int
    num_raw_targets: int
    contrast: Contrast | None
    row_names: list[str]

    @property
    def passes(self) -> list[Pass]:
        """All passes of the step."""
        return [*self.next_token, *(self.contrast.passes if self.contrast else ())]


class StepDataset(Dataset[Batch]):
    """The batches of a run, by step.

    Args:
        recipe: The recipe.
        corpora: The data.
        processes: How many processes split each batch.
        rank: Which of them this is.
        max_positions: The most positions of a row; a text that is reconstructed takes its own
            twice.

    Raises:
        InputError: A batch cannot be filled or split.
    """

    def __init__(
        self,
        recipe: Recipe,
        corpora: Sequence[Corpus],
        processes: int = 1,
        rank: int = 0,
        max_positions: int = sys.maxsize,
    ) -> None:
        batch = recipe.schedule.batch
        self.recipe, self.processes, self.rank = recipe, processes, rank
        self.max_positions = max_positions
        self._next_token = _Sampler("next_token", corpora, batch, recipe)
        self._contrast = _Sampler("contrastive", corpora, _contrastive_batch(recipe), recipe)
        samplers = [s for s in (self._next_token, self._contrast) if s.is_used]
        for sampler in samplers:
            if sampler.batch % processes:
                raise InputError(
                    f"a batch of {sampler.batch} cannot be shared by {processes} processes: make "
                    "it a multiple of them"
                )
        used = {corpus.name for sampler in samplers for corpus in sampler.corpora}
        for corpus in corpora:
            if corpus.name not in used:
                raise InputError(
                    f"data {corpus.name!r} is of kind {corpus.source.kind}, which no objective of "
                    "the recipe reads: leave it out"
                )

    def __len__(self) -> int:
        return self.recipe.schedule.steps

    def __getitem__(self, step: int) -> Batch:
        contrastive_weight = alpha(self.recipe, step)
        settings = self.recipe.next_token
        row_names: list[str] = []
        passes: list[Pass] = []
        num_targets = num_raw_targets = 0
        contrast = None
        if settings and (contrastive_weight < 1 or settings.distill):
            batch, row_names = self._next_token_rows(step, raw_only=contrastive_weight == 1)
            num_targets = sum(len(r.text) - 1 + len(r.suffix) for r in batch)
            num_raw_targets = sum(len(r.text) - 1 for r in batch if not r.spans)
            passes = self._build_passes(self._split_by_length(batch), labeled=True)[0]
        if contrastive_weight > 0:
            contrast, pair_names = self._build_contrast(step)
            row_names += pair_names
        return Batch(
            step, contrastive_weight, passes, num_targets, num_raw_targets, contrast, row_names
        )

    # -- next-token rows -----------------------------------------------------------------------

    def _next_token_rows(self, step: int, raw_only: bool) -> tuple[list[Row], list[str]]:
        """Rows of all processes, and their names."""
        assert self.recipe.next_token is not None
        corpus, indices = self._next_token[step]
        p_raw = raw_share(self.recipe, step)
        chosen: list[tuple[Row, str]] = []
        spare: list[tuple[Row, str]] = []
        for index, data in zip(indices, corpus.take(indices), strict=True):
            if "suffix" in data:
                row = Row.whole(data["text"], data["suffix"])
            else:
                rng = self._rng(step, index)
                row = rows.mixed_row(data["text"], rng, p_raw, self.recipe.next_token.split)
            row = rows.shorten_to_fit(row, self.recipe.k, self.max_positions)
            named = row, f"{corpus.name}:{data['row']}"
            (spare if raw_only and row.spans else chosen).append(named)
        # If only raw rows count, others fill up the shares; they weigh nothing.
        chosen += spare[: -len(chosen) % self.processes]
        return [row for row, _ in chosen], [name for _, name in chosen]

    # -- contrastive rows ----------------------------------------------------------------------

    def _build_contrast(self, step: int) -> tuple[Contrast, list[str]]:
        """This process's share of the pairs, and the names of all rows."""
        corpus, indices = self._contrast[step]
        data = corpus.take(indices)
        examples = [self._example(step, i, row) for i, row in zip(indices, data, strict=True)]
        if only_aligns(self.recipe, step):  # of pairs alone
            examples = [example._replace(negatives=()) for example in examples]
        examples.sort(key=lambda example: -len(example.document))
        shares = [examples[rank :: self.processes] for rank in range(self.processes)]
        passes, order = self._build_passes([_rows(share) for share in shares], labeled=False)
        documents = [_seen(row) for share in shares for row in _rows(share)[len(share) :]]
        num_queries, width = len(shares[0]), len(documents) // self.processes
        positive = np.concatenate(
            [rank * width + np.arange(num_queries) for rank in range(self.processes)]
        )
        by_process = [example for share in shares for example in share]
        contrast = Contrast(
            passes,
            order,
            num_queries,
            positive,
            _find_false_negatives(by_process, documents, positive),
            _teacher_vectors(by_process),
        )
        return contrast, [f"{corpus.name}:{row['row']}" for row in data]

    def _example(self, step: int, index: int, data: dict[str, Any]) -> _Example:
        if "query" in data:
            vectors = (data.get("query_vector"), data.get("document_vector"))
            negatives, source = data.get("negatives", ()), data.get("source")
            return _Example(
                data["query"], data["document"], negatives, vectors, source, data.get("start", 0)
            )
        assert self.recipe.contrastive is not None
        text, vector = data["text"], data.get("vector")
        positive = rows.drop_tokens(text, self._rng(step, index), self.recipe.contrastive.drop)
        return _Example(text, positive, (), (vector, vector))

    def _rng(self, step: int, index: int) -> random.Random:
        return random.Random(f"{self.recipe.seed} {step} {index}")

    # -- splitting and arranging ---------------------------------------------------------------

    def _split_by_length(self, batch: Sequence[Row]) -> list[list[Row]]:
        """Split rows among processes so that each gets rows of similar lengths."""
        by_length = sorted(batch, key=lambda row: -row.length(self.recipe.k))
        return [by_length[rank :: self.processes] for rank in range(self.processes)]

    def _build_passes(self, shares: list[list[Row]], labeled: bool) -> tuple[list[Pass], list[int]]:
        """This process's passes, split where every other process splits its own.

        Args:
            shares: The rows of each process.
            labeled: Whether rows have labels.

        Returns:
            The passes, and the numbers of their rows in this process's share.
        """
        k, memory = self.recipe.k, self.recipe.memory
        lengths = [[row.length(k) for row in share] for share in shares]
        by_length = [sorted(range(len(ls)), key=lambda i: -ls[i]) for ls in lengths]
        longest = [
            max(ls[i] for ls, i in zip(lengths, places, strict=True))
            for places in zip(*by_length, strict=True)
        ]
        passes, order = [], []
        for part in plan_batches(longest, memory.tokens, memory.padding):
            indices = [by_length[self.rank][i] for i in part]
            chosen = [shares[self.rank][i] for i in indices]
            layout = Layout.build(chosen, k, "right" if labeled else "aligned")
            labels = rows.next_token_labels(layout) if labeled else None
            passes.append(Pass(layout, labels, np.array([not row.spans for row in chosen])))
            order += indices
        return passes, order


class _Example(NamedTuple):
    query: Sequence[int]
    document: Sequence[int]
    negatives: Sequence[Sequence[int]]
    vectors: tuple[Sequence[float] | None, Sequence[float] | None]
    source: str | None = None
    start: int = 0  # of the document, after its context

    @property
    def document_row(self) -> Row:
        """The document's special tokens see it alone."""
        return Row(self.document, ((self.start, len(self.document)),))


def _rows(share: Sequence[_Example]) -> list[Row]:
    """A process's queries, then their documents, then negatives."""
    return [
        *(Row.whole(example.query) for example in share),
        *(example.document_row for example in share),
        *(Row.whole(negative) for example in share for negative in example.negatives),
    ]


def _seen(row: Row) -> tuple[int, ...]:
    """What a row's special tokens see."""
    [(start, stop)] = row.spans
    return tuple(row.text[start:stop])


class _Sampler:
    """Draws each step's source and its rows; every row comes once in an epoch of its source."""

    def __init__(
        self, objective: str, corpora: Sequence[Corpus], batch: int, recipe: Recipe
    ) -> None:
        kinds = ("text", "summary", "prompt") if objective == "next_token" else ("text", "pairs")
        self.batch, self.seed = batch, recipe.seed
        # By name, so that the order in a file does not matter.
        self.corpora = sorted(
            (c for c in corpora if c.source.kind in kinds), key=lambda corpus: corpus.name
        )
        self.is_used = getattr(recipe, objective) is not None
        if self.is_used:
            self._check(objective, kinds)
        weights = np.array([corpus.source.weight for corpus in self.corpora])
        rng = np.random.default_rng([recipe.seed, len(objective)])
        self._sources = (
            rng.choice(len(weights), recipe.schedule.steps, p=weights / weights.sum())
            if self.corpora
            else np.zeros(0, int)
        )
        self._order: dict[int, tuple[int, IntArray]] = {}

    def _check(self, objective: str, kinds: Sequence[str]) -> None:
        if not self.corpora:
            raise InputError(
                f"the recipe has {objective} and no data for it: add data of kind "
                f"{' or '.join(kinds)}, or leave {objective} out"
            )
        for corpus in self.corpora:
            if len(corpus.rows) < self.batch:
                raise InputError(
                    f"data {corpus.name!r} has {len(corpus.rows)} rows, fewer than a batch of "
                    f"{self.batch}: lower schedule.batch"
                )

    def __getitem__(self, step: int) -> tuple[Corpus, IntArray]:
        source = int(self._sources[step])
        corpus = self.corpora[source]
        turn = int((self._sources[:step] == source).sum())
        epoch, place = divmod(turn, len(corpus.rows) // self.batch)
        if self._order.get(source, (-1,))[0] != epoch:
            order = np.random.default_rng([self.seed, source, epoch]).permutation(len(corpus.rows))
            self._order[source] = (epoch, order)
        return corpus, self._order[source][1][place * self.batch : (place + 1) * self.batch]


def rows_drawn(recipe: Recipe, corpora: Sequence[Corpus]) -> dict[str, IntArray]:
    """The rows that a run's contrastive steps read, by the name of their source."""
    sampler = _Sampler("contrastive", corpora, _contrastive_batch(recipe), recipe)
    drawn: dict[str, list[IntArray]] = defaultdict(list)
    for step in range(recipe.schedule.steps):
        if alpha(recipe, step) > 0:
            corpus, indices = sampler[step]
            drawn[corpus.name].append(indices)
    return {name: np.unique(np.concatenate(indices)) for name, indices in drawn.items()}


def _contrastive_batch(recipe: Recipe) -> int:
    return recipe.schedule.contrastive_batch or recipe.schedule.batch


def _find_false_negatives(
    queries: Sequence[_Example], documents: Sequence[tuple[int, ...]], positive: IntArray
) -> npt.NDArray[np.bool_]:
    """Documents equal to the query's own, or to another answer to the same query, or of the same
    source where sources are given, wherever they are: [queries, documents]."""
    columns: dict[tuple[int, ...], list[int]] = {}
    for column, document in enumerate(documents):
        columns.setdefault(document, []).append(column)
    answers: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for example in queries:
        answers.setdefault(tuple(example.query), set()).add(_seen(example.document_row))
    false_negatives = np.zeros((len(queries), len(documents)), dtype=bool)
    for row, example in enumerate(queries):
        relevant = answers[tuple(example.query)]
        false_negatives[row, [column for d in relevant for column in columns[d]]] = True
    sources = np.array([example.source or f"row {i}" for i, example in enumerate(queries)])
    false_negatives[:, positive] |= sources[:, None] == sources
    false_negatives[np.arange(len(queries)), positive] = False
    return false_negatives


def _teacher_vectors(
    examples: Sequence[_Example],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    if any(e.vectors[0] is None or e.vectors[1] is None for e in examples):
        return None
    queries, documents = (np.array([e.vectors[i] for e in examples], np.float32) for i in (0, 1))
    return queries, documents


def count_positions(passes: Sequence[Pass]) -> tuple[int, int]:
    """(tokens, positions) of passes; positions without a token are padding."""
    positions = sum(p.layout.ids.size for p in passes)
    padding = sum(int((p.layout.tokens.role == Role.PAD).sum()) for p in passes)
    return positions - padding, positions
