"""What every process trains on in every step: a function of the recipe, the data and the step.

Nothing depends on what ran before, so a resumed run sees the batches of an uninterrupted one, and
several processes split the batch that one process would have. All of them get the same number of
passes, which sharded training needs.
"""

from __future__ import annotations

import random
import sys
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
from gem_rag.training.schedule import alpha, raw_share


class Pass(NamedTuple):
    """One forward pass of a process.

    Attributes:
        layout: The rows.
        labels: What each position predicts (`rows.next_token_labels`), or None if only vectors are
            needed.
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
        queries: How many of this process's rows are queries; the same in every process.
        positive: For each query of all processes the column of its document among all documents.
        same: Documents that are also right and must not count as negatives: bool [queries,
            documents] over all processes.
        teacher: Vectors of all queries and of their documents by a teacher, or None.
    """

    passes: list[Pass]
    order: list[int]
    queries: int
    positive: IntArray
    same: npt.NDArray[np.bool_]
    teacher: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None


@dataclass(frozen=True)
class Batch:
    """One step of one process.

    Attributes:
        step: Its number.
        alpha: Weight of the contrastive loss.
        next_token: Passes of rows to predict.
        targets: Tokens that the rows of all processes predict.
        raw_targets: Tokens that their raw rows predict.
        contrast: None while alpha is 0.
        where: Names of the rows that all processes train on, for errors.
    """

    step: int
    alpha: float
    next_token: list[Pass]
    targets: int
    raw_targets: int
    contrast: Contrast | None
    where: list[str]

    @property
    def passes(self) -> list[Pass]:
        return [*self.next_token, *(self.contrast.passes if self.contrast else ())]


class StepDataset(Dataset[Batch]):
    """The batches of a run, by step.

    Args:
        recipe: The recipe.
        corpora: The data.
        processes: How many processes split each batch.
        rank: Which of them this is.
        max_positions: The most positions of a row; a text that is reconstructed from its special
            tokens takes its own twice.

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
        plan = recipe.schedule
        self.recipe, self.processes, self.rank = recipe, processes, rank
        self.max_positions = max_positions
        self.next_token = _Sampler("next_token", corpora, plan.batch, recipe)
        self.contrast = _Sampler(
            "contrastive", corpora, plan.contrastive_batch or plan.batch, recipe
        )
        for draws in (self.next_token, self.contrast):
            if draws.is_used and draws.batch % processes:
                raise InputError(
                    f"a batch of {draws.batch} cannot be shared by {processes} processes: make it "
                    "a multiple of them"
                )
        used = [d for d in (self.next_token, self.contrast) if d.is_used]
        read = {corpus.name for draws in used for corpus in draws.corpora}
        for corpus in corpora:
            if corpus.name not in read:
                raise InputError(
                    f"data {corpus.name!r} is of kind {corpus.source.kind}, which no objective of "
                    "the recipe reads: leave it out"
                )

    def __len__(self) -> int:
        return self.recipe.schedule.steps

    def __getitem__(self, step: int) -> Batch:
        share = alpha(self.recipe, step)
        where: list[str] = []
        passes: list[Pass] = []
        targets = raw_targets = 0
        contrast = None
        settings = self.recipe.next_token
        if settings and (share < 1 or settings.distill):
            made, where = self._next_token_rows(step, raw_only=share == 1)
            targets = sum(len(r.text) - 1 + len(r.suffix) for r in made)
            raw_targets = sum(len(r.text) - 1 for r in made if not r.spans)
            passes = self._build_passes(self._deal(made), labeled=True)[0]
        if share > 0:
            contrast, pair_names = self._contrast(step)
            where += pair_names
        return Batch(step, share, passes, targets, raw_targets, contrast, where)

    # -- next-token rows -----------------------------------------------------------------------

    def _next_token_rows(self, step: int, raw_only: bool) -> tuple[list[Row], list[str]]:
        assert self.recipe.next_token is not None
        corpus, indices = self.next_token[step]
        p_raw = raw_share(self.recipe, step)
        chosen: list[tuple[Row, str]] = []
        spare: list[tuple[Row, str]] = []
        for index, data in zip(indices, corpus.take(indices), strict=True):
            if "suffix" in data:
                row = Row.whole(data["text"], data["suffix"])
            else:
                rng = self._rng(step, index)
                row = rows.mixed_row(data["text"], rng, p_raw, self.recipe.next_token.split)
            fitted = (
                rows.shorten_to_fit(row, self.recipe.k, self.max_positions),
                f"{corpus.name}:{data['row']}",
            )
            (spare if raw_only and row.spans else chosen).append(fitted)
        # If only raw rows count, others fill up the shares; they weigh nothing.
        chosen += spare[: -len(chosen) % self.processes]
        return [row for row, _ in chosen], [name for _, name in chosen]

    # -- contrastive rows ----------------------------------------------------------------------

    def _contrast(self, step: int) -> tuple[Contrast, list[str]]:
        corpus, indices = self.contrast[step]
        taken = corpus.take(indices)
        examples = [self._example(step, i, data) for i, data in zip(indices, taken, strict=True)]
        examples.sort(key=lambda e: -len(e.document))
        shares = [examples[r :: self.processes] for r in range(self.processes)]
        dealt = [
            [Row.whole(ids) for ids in (
                *(e.query for e in share), *(e.document for e in share),
                *(n for e in share for n in e.negatives),
            )]
            for share in shares
        ]  # fmt: skip
        passes, order = self._build_passes(dealt, labeled=False)
        documents = [tuple(row.text) for own, share in zip(dealt, shares, strict=True)
                     for row in own[len(share) :]]  # fmt: skip
        everyone = [example for share in shares for example in share]
        share, width = len(shares[0]), len(documents) // self.processes
        positive = np.concatenate([r * width + np.arange(share) for r in range(self.processes)])
        contrast = Contrast(
            passes,
            order,
            share,
            positive,
            _equal_documents(everyone, documents, positive),
            _teacher_vectors(everyone),
        )
        return contrast, [f"{corpus.name}:{data['row']}" for data in taken]

    def _example(self, step: int, index: int, data: dict[str, Any]) -> _Example:
        if "query" in data:
            vectors = (data.get("query_vector"), data.get("document_vector"))
            return _Example(data["query"], data["document"], data.get("negatives", ()), vectors)
        assert self.recipe.contrastive is not None
        drop = self.recipe.contrastive.drop
        text = data["text"]
        positive = rows.drop_tokens(text, self._rng(step, index), drop)
        return _Example(text, positive, (), (data.get("vector"), data.get("vector")))

    def _rng(self, step: int, index: int) -> random.Random:
        return random.Random(f"{self.recipe.seed} {step} {index}")

    # -- splitting and arranging -------------------------------------------------------------------

    def _deal(self, made: Sequence[Row]) -> list[list[Row]]:
        """Split rows among processes so that each gets rows of similar length."""
        by_length = sorted(made, key=lambda row: -row.length(self.recipe.k))
        return [by_length[r :: self.processes] for r in range(self.processes)]

    def _build_passes(self, dealt: list[list[Row]], labeled: bool) -> tuple[list[Pass], list[int]]:
        """This process's passes, split where every other process splits its own."""
        k, memory = self.recipe.k, self.recipe.memory
        by_length = [sorted(range(len(r)), key=lambda i: -r[i].length(k)) for r in dealt]
        lengths = [
            max(dealt[p][i].length(k) for p, i in enumerate(places))
            for places in zip(*by_length, strict=True)
        ]
        mine, passes, order = dealt[self.rank], [], []
        for part in plan_batches(lengths, memory.tokens, memory.padding):
            indices = [by_length[self.rank][i] for i in part]
            chosen = [mine[i] for i in indices]
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


class _Sampler:
    """Which source, and which of its rows, each step's batch takes: every row once an epoch."""

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
        if self.is_used and not self.corpora:
            raise InputError(f"the recipe has {objective} and no data for it: add data of kind "
                             f"{' or '.join(kinds)}, or leave {objective} out")  # fmt: skip
        for corpus in self.corpora if self.is_used else ():
            if len(corpus.rows) < batch:
                raise InputError(f"data {corpus.name!r} has {len(corpus.rows)} rows, fewer than a "
                                 f"batch of {batch}: lower schedule.batch")  # fmt: skip
        weights = np.array([corpus.source.weight for corpus in self.corpora])
        draws = np.random.default_rng([recipe.seed, len(objective)])
        steps = recipe.schedule.steps
        self._source = draws.choice(len(weights), steps, p=weights / weights.sum()) if len(
            weights
        ) else np.zeros(0, int)  # fmt: skip
        self._order: dict[int, tuple[int, IntArray]] = {}

    def __getitem__(self, step: int) -> tuple[Corpus, IntArray]:
        source = int(self._source[step])
        corpus = self.corpora[source]
        turn = int((self._source[:step] == source).sum())
        epoch, place = divmod(turn, len(corpus.rows) // self.batch)
        if self._order.get(source, (-1,))[0] != epoch:
            order = np.random.default_rng([self.seed, source, epoch]).permutation(len(corpus.rows))
            self._order[source] = (epoch, order)
        return corpus, self._order[source][1][place * self.batch : (place + 1) * self.batch]


def _equal_documents(
    queries: Sequence[_Example], documents: Sequence[tuple[int, ...]], positive: IntArray
) -> npt.NDArray[np.bool_]:
    """Documents equal to the query's own, or to another answer to the same query, wherever they
    stand: [queries, documents]."""
    equal: dict[tuple[int, ...], list[int]] = {}
    for column, document in enumerate(documents):
        equal.setdefault(document, []).append(column)
    answers: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for example in queries:
        answers.setdefault(tuple(example.query), set()).add(tuple(example.document))
    same = np.zeros((len(queries), len(documents)), dtype=bool)
    for row, example in enumerate(queries):
        right = answers[tuple(example.query)]
        same[row, [column for document in right for column in equal[document]]] = True
        same[row, positive[row]] = False
    return same


def _teacher_vectors(
    examples: Sequence[_Example],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    if any(e.vectors[0] is None or e.vectors[1] is None for e in examples):
        return None
    queries, documents = (np.array([e.vectors[i] for e in examples], np.float32) for i in (0, 1))
    return queries, documents


def count_positions(passes: Sequence[Pass]) -> tuple[int, int]:
    """(tokens, positions) of passes; positions without a token are padding."""
    places = sum(p.layout.ids.size for p in passes)
    padded = sum(int((p.layout.tokens.role == Role.PAD).sum()) for p in passes)
    return places - padded, places
