"""Batches: what each process trains on in each step, and that they depend on nothing else."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_rag.core.layout import Role, plan_batches
from gem_rag.errors import InputError
from gem_rag.training.batches import Batch, Contrast, Pass, StepDataset, count_positions
from gem_rag.training.corpus import Corpus
from gem_rag.training.recipe import Recipe, Source, from_state
from gem_rag.training.rows import IGNORED

BATCH = 4
SOME = settings(max_examples=15)


# -- data and recipes --------------------------------------------------------------------------


def corpus(name: str, columns: dict[str, Sequence[Any]], **source: Any) -> Corpus:
    """Rows of token ids that no file lies behind."""
    length = len(next(iter(columns.values())))
    rows = datasets.Dataset.from_dict({**columns, "row": range(1, length + 1)})
    return Corpus(name, Source(**source), rows, rows.select([]), 0)


def ids(start: int, length: int) -> list[int]:
    """A text like no other, if starts are 100 apart and so are kinds of text by their thousands."""
    return list(range(start, start + length))


def texts(count: int, start: int = 0, seed: int = 0, longest: int = 20) -> list[list[int]]:
    rng = random.Random(seed)
    return [ids(start + 100 * row, rng.randint(1, longest)) for row in range(count)]


def text_corpus(count: int, name: str = "texts", seed: int = 0, **source: Any) -> Corpus:
    return corpus(name, {"text": texts(count, 10_000, seed)}, kind="text", **source)


def pair_corpus(
    count: int, name: str = "pairs", negatives: int = 0, seed: int = 0, **source: Any
) -> Corpus:
    columns: dict[str, Sequence[Any]] = {
        "query": texts(count, 20_000, seed),
        "document": texts(count, 30_000, seed + 1),
    }
    if negatives:
        others = [texts(count, 40_000 + 10_000 * n, seed + 2 + n) for n in range(negatives)]
        columns["negatives"] = [list(row) for row in zip(*others, strict=True)]
    return corpus(name, columns, kind="pairs", negatives=negatives, **source)


def suffix_corpus(count: int, name: str = "summaries", kind: str = "summary") -> Corpus:
    columns = {"text": texts(count, 70_000, 5), "suffix": texts(count, 80_000, 6)}
    return corpus(name, columns, kind=kind)


def recipe(*, steps: int = 8, batch: int = BATCH, plan: Any = None, **state: Any) -> Recipe:
    """Both objectives, in the scope full: the next token for two steps, and a third with both."""
    phases = {"contrastive_from": 2, "ramp": 1}
    least: dict[str, Any] = {
        "scope": "full",
        "next_token": {"raw": 0.5},
        "contrastive": {},
        "schedule": {"steps": steps, "batch": batch, **phases, **(plan or {})},
    }
    return from_state({**least, **state}, "here")


def next_token_only(**state: Any) -> Recipe:
    return recipe(contrastive=None, **state)


def contrastive_only(**state: Any) -> Recipe:
    return recipe(next_token=None, **state)


class World(NamedTuple):
    recipe: Recipe
    corpora: list[Corpus]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Data of all kinds, with recipes that train on all of it."""
    seed = draw(st.integers(0, 1000))
    own_size = draw(st.sampled_from([None, BATCH, 2 * BATCH]))
    counts = st.integers(own_size or BATCH, 12)
    corpora = [
        text_corpus(draw(counts), seed=seed),
        pair_corpus(draw(counts), negatives=draw(st.integers(0, 2)), seed=seed),
        suffix_corpus(BATCH),
    ]
    made = recipe(
        k=draw(st.integers(1, 3)),
        seed=seed,
        memory={"tokens": draw(st.integers(10, 200)), "padding": draw(st.floats(0, 1))},
        plan={"contrastive_batch": own_size},
        contrastive={"drop": draw(st.floats(0, 1))},
        next_token={"raw": draw(st.floats(0, 1))},
    )
    return World(made, corpora)


# -- batches, read back ------------------------------------------------------------------------


class Found(NamedTuple):
    """A row of a pass: its tokens, and those that are to be predicted."""

    text: tuple[int, ...]
    specials: int
    suffix: tuple[int, ...]
    predicted: tuple[int, ...]
    raw: bool


def rows_of(passes: Sequence[Pass]) -> Iterator[Found]:
    for part in passes:
        for row, raw in enumerate(part.raw):
            here, role = part.layout.ids[row], part.layout.tokens.role[row]
            labels = np.zeros(0, int) if part.labels is None else part.labels[row]
            yield Found(
                tuple(here[role == Role.TEXT].tolist()),
                int((role == Role.SPECIAL).sum()),
                tuple(here[role == Role.SUFFIX].tolist()),
                tuple(labels[labels != IGNORED].tolist()),
                bool(raw),
            )


Texts = list[tuple[int, ...]]


def restored(contrast: Contrast) -> tuple[Texts, Texts]:
    """(queries, documents with negatives behind them) of a process's share."""
    found = [row.text for row in rows_of(contrast.passes)]
    assert sorted(contrast.order) == list(range(len(found)))
    by_number = dict(zip(contrast.order, found, strict=True))
    everything = [by_number[number] for number in range(len(found))]
    return everything[: contrast.num_queries], everything[contrast.num_queries :]


def gathered(contrasts: Sequence[Contrast]) -> tuple[Texts, Texts]:
    """What all processes have together: in order of rank, as vectors are gathered."""
    shares = [restored(contrast) for contrast in contrasts]
    queries, documents = ([text for share in shares for text in share[i]] for i in (0, 1))
    return queries, documents


def pairs_of(contrasts: Sequence[Contrast]) -> Counter[Any]:
    """Queries with their own documents."""
    queries, documents = gathered(contrasts)
    own = [documents[column] for column in contrasts[0].positive]
    return Counter(zip(queries, own, strict=True))


def all_shares(world: World, processes: int) -> list[StepDataset]:
    return [StepDataset(world.recipe, world.corpora, processes, rank) for rank in range(processes)]


def plain(value: Any) -> Any:
    """The same in lists and numbers, which can be compared."""
    if isinstance(value, np.ndarray):
        return value.shape, value.tolist()
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def sources(batch: Batch) -> set[str]:
    return {name.split(":")[0] for name in batch.row_names}


# -- functions of the step ---------------------------------------------------------------------


@SOME
@given(worlds(), st.randoms(use_true_random=False))
def test_a_step_depends_on_nothing_that_ran_before(world: World, rng: random.Random) -> None:
    """So a resumed run, or a second process, sees the unbroken one's batches.

    Nor on the order of sources, which no hash knows.
    """
    in_turn, mixed_up = StepDataset(*world), StepDataset(world.recipe, rng.sample(world.corpora, 3))
    wanted = [plain(in_turn[step]) for step in range(len(in_turn))]
    order = rng.sample(range(len(in_turn)), len(in_turn))
    for step in [*order, *order[:3]]:
        assert plain(mixed_up[step]) == wanted[step]
    assert plain(StepDataset(*world)[order[0]]) == wanted[order[0]]


def test_a_run_has_its_schedules_steps() -> None:
    """And another seed draws other rows."""
    one, other = (StepDataset(recipe(steps=5, seed=seed), [text_corpus(40)]) for seed in (0, 1))
    assert len(one) == 5
    assert [one[number].step for number in range(5)] == [0, 1, 2, 3, 4]
    assert one[0].row_names != other[0].row_names


# -- shares ------------------------------------------------------------------------------------


@SOME
@given(worlds(), st.sampled_from([2, 4]))
def test_shares_together_are_the_one_process_batch(world: World, processes: int) -> None:
    """The same rows, and passes of the same numbers of rows in every process."""
    whole, shares = StepDataset(*world), all_shares(world, processes)
    for step in range(len(whole)):
        one, parts = whole[step], [share[step] for share in shares]
        for part in parts:
            same = ("alpha", "num_targets", "num_raw_targets", "row_names")
            assert all(getattr(part, name) == getattr(one, name) for name in same)
        assert len({str([len(p.raw) for p in part.passes]) for part in parts}) == 1
        rows = [row for part in parts for row in rows_of(part.next_token)]
        assert Counter(rows) == Counter(rows_of(one.next_token))
        assert sum(len(row.predicted) for row in rows) == one.num_targets
        assert sum(len(row.predicted) for row in rows if row.raw) == one.num_raw_targets

        contrasts = [part.contrast for part in parts if part.contrast]
        assert len(contrasts) == (processes if one.contrast else 0)
        if one.contrast:
            assert pairs_of(contrasts) == pairs_of([one.contrast])
            queries, documents = gathered(contrasts)
            assert Counter(documents) == Counter(gathered([one.contrast])[1])
            for contrast in contrasts:
                assert contrast.num_queries == one.contrast.num_queries // processes
                assert plain(contrast.positive) == plain(contrasts[0].positive)
                assert plain(contrast.false_negatives) == plain(contrasts[0].false_negatives)
                assert contrast.false_negatives.shape == (len(queries), len(documents))


@pytest.mark.parametrize(
    ("made", "times"),
    [
        (next_token_only(batch=8, next_token={"raw": 1.0}), 1),
        (contrastive_only(batch=8, contrastive={"drop": 0.0}), 2),  # as queries and as documents
    ],
    ids=["next_token", "contrastive"],
)
def test_processes_get_rows_of_like_lengths(made: Recipe, times: int) -> None:
    """Else all would wait for the one with the longest."""
    lengths = [40, 3, 30, 7, 20, 12, 1, 26]
    data = [corpus("texts", {"text": [ids(100 * n, size) for n, size in enumerate(lengths)]})]
    shares = [share[0].passes for share in all_shares(World(made, data), 2)]
    found = [sorted({len(row.text) for row in rows_of(passes)}) for passes in shares]
    assert found == [[3, 12, 26, 40], [1, 7, 20, 30]]
    assert [len(list(rows_of(passes))) for passes in shares] == [4 * times] * 2


@given(
    rows=st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=BATCH, max_size=BATCH),
    processes=st.sampled_from([1, 2, 4]),
)
@SOME
def test_right_documents_do_not_count_as_wrong(
    rows: list[tuple[int, int, int]], processes: int
) -> None:
    """Those equal to an answer to the query, wherever they stand."""
    columns = {
        "query": [[1, query] for query, _, _ in rows],
        "document": [[2, document] for _, document, _ in rows],
        "negatives": [[[2, negative]] for _, _, negative in rows],
    }
    data = [corpus("pairs", columns, kind="pairs", negatives=1)]
    shares = all_shares(World(contrastive_only(), data), processes)
    contrasts = [share[0].contrast for share in shares]
    queries, documents = gathered(contrasts)
    assert pairs_of(contrasts) == Counter(((1, query), (2, own)) for query, own, _ in rows)
    positive = contrasts[0].positive.tolist()
    for row, own in enumerate(positive):
        answers = [documents[positive[i]] for i, q in enumerate(queries) if q == queries[row]]
        wanted = [column != own and d in answers for column, d in enumerate(documents)]
        assert all(contrast.false_negatives[row].tolist() == wanted for contrast in contrasts)


@pytest.mark.parametrize("processes", [1, 2])
def test_special_tokens_see_a_document_without_its_context(processes: int) -> None:
    """Which makes two documents equal that were read after different contexts."""
    documents = [[7, 8, 1, 2], [9, 1, 2], [1, 2, 3], [4, 5]]
    columns = {"query": texts(4, 20_000), "document": documents, "start": [2, 1, 0, 1]}
    seen = {(7, 8, 1, 2): (2, 4), (9, 1, 2): (1, 3), (1, 2, 3): (0, 3), (4, 5): (1, 2)}
    data = [corpus("pairs", columns, kind="pairs")]
    contrasts = [
        share[0].contrast for share in all_shares(World(contrastive_only(), data), processes)
    ]
    for contrast in contrasts:
        assert contrast is not None
        for part in contrast.passes:
            tokens = part.layout.tokens
            for row in range(len(part.raw)):
                is_special = tokens.role[row] == Role.SPECIAL
                text = tuple(part.layout.ids[row][tokens.role[row] == Role.TEXT].tolist())
                span = seen.get(text, (0, len(text)))
                assert {*zip(tokens.start[row][is_special], tokens.stop[row][is_special])} == {span}  # noqa: B905
    found = gathered(contrasts)[1]
    equal = {(7, 8, 1, 2), (9, 1, 2)}
    for row, own in enumerate(contrasts[0].positive.tolist()):
        wanted = [
            column != own and {document, found[own]} == equal
            for column, document in enumerate(found)
        ]
        assert contrasts[0].false_negatives[row].tolist() == wanted


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_teachers_vectors_are_in_the_order_of_their_texts(processes: int) -> None:
    """In the order of all processes' queries; the same in each."""
    columns = {
        "query": texts(8, 20_000),
        "document": texts(8, 30_000, seed=1),
        "query_vector": [[float(row), 1.0] for row in range(8)],
        "document_vector": [[float(row), 2.0] for row in range(8)],
    }
    world = World(contrastive_only(batch=8), [corpus("pairs", columns, kind="pairs")])
    contrasts = [share[0].contrast for share in all_shares(world, processes)]
    numbers = [(query[0] - 20_000) // 100 for query in gathered(contrasts)[0]]
    assert sorted(numbers) == list(range(8))
    for contrast in contrasts:
        queries, documents = contrast.teacher
        assert queries.tolist() == [[number, 1] for number in numbers]
        assert documents.tolist() == [[number, 2] for number in numbers]
        assert queries.dtype == np.float32
    assert StepDataset(world.recipe, [pair_corpus(8)])[0].contrast.teacher is None


@given(worlds())
@SOME
def test_texts_come_back_in_order(world: World) -> None:
    """Queries, then their documents at the same places, then negatives row by row."""
    steps = StepDataset(*world)
    rows = {tuple(row.get("query", row.get("text"))): row for c in world.corpora for row in c.rows}
    for batch in map(steps.__getitem__, range(3, len(steps))):
        queries, documents = restored(batch.contrast)
        assert batch.contrast.positive.tolist() == list(range(len(queries)))
        negatives = []
        for query, document in zip(queries, documents[: len(queries)], strict=True):
            row = rows[query]
            if "query" in row:
                assert document == tuple(row["document"])
                negatives += [tuple(negative) for negative in row.get("negatives", ())]
            else:  # a text without some of its tokens
                remaining = iter(row["text"])
                assert all(token in remaining for token in document)
        assert documents[len(queries) :] == negatives


# -- which rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [next_token_only, contrastive_only])
def test_each_row_comes_once_an_epoch_of_its_source(made: Any) -> None:
    """But for those that do not fill a batch, which are others in each epoch."""
    data = [text_corpus(8, "one"), text_corpus(14, "other", weight=2)]
    steps = StepDataset(made(steps=90), data)
    turns: dict[str, list[str]] = {"one": [], "other": []}
    for batch in map(steps.__getitem__, range(90)):
        [source] = sources(batch)  # a batch's rows come from one source
        turns[source] += batch.row_names
    for source, count in (("one", 8), ("other", 14)):
        size = count // BATCH * BATCH
        names = turns[source]
        epochs = [names[at : at + size] for at in range(0, len(names) - size + 1, size)]
        assert len(epochs) > 9
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert set().union(*epochs) == {f"{source}:{row}" for row in range(1, count + 1)}
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("made", [next_token_only, contrastive_only])
def test_sources_take_turns_by_weight(made: Any) -> None:
    data = [text_corpus(4, "one"), text_corpus(4, "two", weight=3)]
    steps = StepDataset(made(steps=400, batch=2), data)
    drawn = Counter(steps[step].row_names[0].split(":")[0] for step in range(400))
    # Three standard deviations of as many draws.
    assert drawn["two"] / 400 == pytest.approx(0.75, abs=0.065)


@pytest.mark.parametrize(
    ("made", "kinds"),
    [(next_token_only, "text summary prompt"), (contrastive_only, "text pairs")],
)
def test_objectives_train_on_their_own_kinds_of_data(made: Any, kinds: str) -> None:
    """What none of a recipe's reads is refused by name."""
    data = {"text": text_corpus(4, "text"), "pairs": pair_corpus(4)}
    data |= {kind: suffix_corpus(4, kind, kind) for kind in ("summary", "prompt")}
    steps = StepDataset(made(steps=40), [data[kind] for kind in kinds.split()])
    assert set().union(*(sources(steps[step]) for step in range(40))) == set(kinds.split())
    for kind in data.keys() - kinds.split():
        with pytest.raises(InputError) as error:
            StepDataset(made(), [data["text"], data[kind]])
        assert str(error.value) == (
            f"data {kind!r} is of kind {kind}, which no objective of the recipe reads: leave it out"
        )


@given(worlds())
@SOME
def test_the_rows_that_train_are_named(world: World) -> None:
    """A row's tokens begin with a number of their own."""
    steps = StepDataset(*world)
    starts = {
        f"{data.name}:{row['row']}": row.get("text", row.get("query"))[0]
        for data in world.corpora
        for row in data.rows
    }
    for batch in map(steps.__getitem__, range(len(steps))):
        found = Counter(row.text[0] for row in rows_of(batch.next_token))
        if batch.contrast:
            found += Counter(query[0] for query in restored(batch.contrast)[0])
        assert found == Counter(starts[name] for name in batch.row_names)


def test_batches_have_their_sizes() -> None:
    made = recipe(plan={"contrastive_batch": 6})
    batch = StepDataset(made, [text_corpus(8)])[2]
    assert len(list(rows_of(batch.next_token))) == 4
    assert batch.contrast.num_queries == 6
    assert len(batch.row_names) == 10
    assert StepDataset(recipe(), [text_corpus(8)])[3].contrast.num_queries == 4


# -- rows to predict ---------------------------------------------------------------------------


@given(worlds())
@SOME
def test_everything_but_special_tokens_is_predicted(world: World) -> None:
    """Each text but for its first token, and each suffix; never a special token."""
    steps = StepDataset(*world)
    for batch in map(steps.__getitem__, range(3)):
        for row in rows_of(batch.next_token):
            assert row.predicted == (*row.text[1:], *row.suffix)
            assert row.specials == (0 if row.raw else world.recipe.k)
            assert not (row.raw and row.suffix)
        for part in batch.contrast.passes if batch.contrast else ():
            assert part.labels is None
            assert not part.raw.any()
            assert all(row.specials == world.recipe.k for row in rows_of([part]))


@given(worlds(), st.integers(0, 20))
@SOME
def test_rows_take_no_more_places_than_there_are(world: World, spare: int) -> None:
    """A text fits by itself, and twice, or with a suffix, it may not."""
    places = 20 + world.recipe.k + spare
    whole, bounded = StepDataset(*world), StepDataset(*world, max_positions=places)
    for step in range(3):
        uncut = {row.text[0]: row for row in rows_of(whole[step].next_token)}
        found = list(rows_of(bounded[step].next_token))
        assert len(found) == BATCH
        for row in found:
            other = uncut[row.text[0]]
            length = len(other.text + other.suffix) + other.specials
            assert len(row.text + row.suffix) + row.specials == min(length, places)
            assert row.text == other.text[: len(row.text)]
            assert row.suffix == other.suffix[: len(row.suffix)]
            assert row.raw == other.raw
            assert row.predicted == (*row.text[1:], *row.suffix)
            assert bool(row.suffix) == bool(other.suffix)
        assert bounded[step].num_targets == sum(len(row.predicted) for row in found)
        assert plain(bounded[step].contrast) == plain(whole[step].contrast)


@pytest.mark.parametrize("kind", ["summary", "prompt"])
def test_suffixes_of_the_data_follow_the_special_tokens(kind: str) -> None:
    data = suffix_corpus(BATCH, kind=kind)
    batch = StepDataset(next_token_only(next_token={"raw": 1.0}), [data])[0]
    found = {(row.text, row.specials, row.suffix) for row in rows_of(batch.next_token)}
    assert found == {(tuple(r["text"]), 1, tuple(r["suffix"])) for r in data.rows}
    assert batch.num_raw_targets == 0


def test_shares_of_rows_are_the_recipes() -> None:
    steps = StepDataset(
        next_token_only(batch=50, steps=40, next_token={"raw": 0.8, "split": 0.25}),
        [text_corpus(50)],
    )
    rows = [row for step in range(40) for row in rows_of(steps[step].next_token)]
    rows = [row for row in rows if len(row.text) > 1 or row.suffix]  # one token stays raw
    raw = sum(row.raw for row in rows) / len(rows)
    rebuilt = sum(row.text == row.suffix for row in rows) / sum(not row.raw for row in rows)
    assert raw == pytest.approx(0.8, abs=0.03)
    assert rebuilt == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize(
    ("scope", "raw", "found"), [("full", 0.0, [1, 1, 0, 0]), ("special", 1.0, [0, 0, 0, 0])]
)
def test_all_rows_are_raw_while_adapting(scope: str, raw: float, found: list[int]) -> None:
    """None ever is in the scope special."""
    data = [corpus("texts", {"text": [ids(100 * n, 5) for n in range(4)]})]
    steps = StepDataset(
        next_token_only(scope=scope, next_token={"raw": raw}, plan={"adapt": 2}), data
    )
    assert [{row.raw for row in rows_of(steps[n].next_token)} for n in range(4)] == [
        {bool(share)} for share in found
    ]


def test_rows_are_mixed_anew_in_every_step() -> None:
    steps = StepDataset(next_token_only(steps=20, batch=1, next_token={"raw": 0.5}),
                  [corpus("texts", {"text": [ids(0, 9)]})])  # fmt: skip
    assert len({row for step in range(20) for row in rows_of(steps[step].next_token)}) > 3


@pytest.mark.parametrize(("drop", "kept"), [(0.0, 1.0), (0.5, 0.5), (1.0, 1 / 40)])
def test_a_texts_positive_lacks_some_of_its_tokens(drop: float, kept: float) -> None:
    """Others in each step; one token always stays."""
    data = [corpus("texts", {"text": [ids(100 * row, 40) for row in range(BATCH)]})]
    steps = StepDataset(contrastive_only(contrastive={"drop": drop}), data)
    pairs = [pair for step in range(8) for pair in pairs_of([steps[step].contrast]).elements()]
    found = sum(len(document) for _, document in pairs) / sum(len(query) for query, _ in pairs)
    assert found == pytest.approx(kept, abs=0.05 if drop == 0.5 else 1e-9)
    positives = {document for _, document in pairs}
    assert (len(positives) == BATCH) == (drop == 0)
    assert (len(positives) == len(pairs)) == (drop == 0.5)


# -- phases ------------------------------------------------------------------------------------


def parts_by_step(made: Recipe, steps: int = 5) -> list[tuple[float, bool, bool]]:
    """(alpha, whether there are rows to predict, whether there are pairs) of each step."""
    found = StepDataset(made, [text_corpus(8)])
    batches = [found[step] for step in range(steps)]
    for batch in batches:
        contrast = batch.contrast.passes if batch.contrast else []
        assert batch.passes == [*batch.next_token, *contrast]
        assert bool(batch.num_targets) == bool(batch.next_token)
    return [(b.alpha, bool(b.next_token), b.contrast is not None) for b in batches]


def test_a_loss_without_weight_has_no_rows() -> None:
    assert parts_by_step(recipe()) == [
        (0, True, False), (0, True, False), (0.5, True, True), (1, False, True), (1, False, True),
    ]  # fmt: skip
    assert parts_by_step(next_token_only()) == [(0, True, False)] * 5
    assert parts_by_step(contrastive_only()) == [(1, False, True)] * 5


def test_distilling_keeps_the_raw_rows_to_the_end() -> None:
    """Where the contrastive loss alone trains, generation drifts."""
    both = {"raw": 0.5, "distill": 0.1}
    data = [text_corpus(40, seed=3)]
    plain_steps = StepDataset(recipe(batch=20, next_token={"raw": 0.5}), data)
    steps = StepDataset(recipe(batch=20, next_token=both), data)
    for step in range(3):
        assert plain(steps[step]) == plain(plain_steps[step])
    for step in range(3, 8):
        batch = steps[step]
        rows = list(rows_of(batch.next_token))
        assert 0 < len(rows) < 20
        assert all(row.raw for row in rows)
        assert batch.num_targets == batch.num_raw_targets == sum(len(row.text) - 1 for row in rows)
        assert len(batch.row_names) == len(rows) + 20
        assert plain(batch.contrast) == plain(plain_steps[step].contrast)


@pytest.mark.parametrize(
    "data", [corpus("texts", {"text": [ids(100 * n, 5) for n in range(8)]}), suffix_corpus(8)]
)
def test_distilling_without_raw_rows_is_no_loss(data: Corpus) -> None:
    made = recipe(next_token={"raw": 0.0, "distill": 0.1})
    batch = StepDataset(made, [data, pair_corpus(8, weight=1e9)])[4]
    assert (batch.next_token, batch.num_targets, batch.num_raw_targets) == ([], 0, 0)
    assert sources(batch) == {"pairs"}
    assert len(batch.row_names) == BATCH


@pytest.mark.parametrize("processes", [2, 4])
def test_many_processes_have_equal_shares_of_raw_rows(processes: int) -> None:
    """Other rows, as few as can be, fill them up."""
    made = recipe(batch=8, next_token={"raw": 0.5, "distill": 0.1})
    world = World(made, [text_corpus(8)])
    whole, shares = StepDataset(*world), all_shares(world, processes)
    filled = 0
    for step in range(3, 8):
        one, parts = whole[step], [share[step] for share in shares]
        assert len({str([len(p.raw) for p in part.next_token]) for part in parts}) == 1
        rows = [row for part in parts for row in rows_of(part.next_token)]
        raw = [row for row in rows if row.raw]
        assert Counter(raw) == Counter(rows_of(one.next_token))
        assert len(rows) - len(raw) == -len(raw) % processes
        filled += len(rows) - len(raw)
        for part in parts:
            assert part.num_targets == sum(len(row.predicted) for row in rows)
            assert part.num_raw_targets == one.num_targets == sum(len(row.predicted) for row in raw)
            assert len(part.row_names) == len(rows) + 8
            assert set(one.row_names) <= set(part.row_names)
    assert filled


# -- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "data", "message"),
    [
        (next_token_only(batch=8), [text_corpus(8), text_corpus(7, "few")],
         "data 'few' has 7 rows, fewer than a batch of 8: lower schedule.batch"),
        (contrastive_only(plan={"contrastive_batch": 9}), [pair_corpus(8)],
         "data 'pairs' has 8 rows, fewer than a batch of 9"),
        (recipe(), [pair_corpus(8)],
         "the recipe has next_token and no data for it: add data of kind text or summary or "
         "prompt, or leave next_token out"),
        (recipe(), [suffix_corpus(8)],
         "the recipe has contrastive and no data for it: add data of kind text or pairs"),
        (contrastive_only(), [], "the recipe has contrastive and no data for it"),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_filled(made: Recipe, data: list[Corpus], message: str) -> None:
    with pytest.raises(InputError) as error:
        StepDataset(made, data)
    assert str(error.value).startswith(message)


def test_data_that_an_objective_does_not_read_may_be_few() -> None:
    few_texts = [text_corpus(8), suffix_corpus(4)]
    assert len(StepDataset(recipe(plan={"contrastive_batch": 8}), few_texts)) == 8
    few_pairs = [text_corpus(8), pair_corpus(4)]
    assert len(StepDataset(recipe(batch=8, plan={"contrastive_batch": 4}), few_pairs)) == 8


@pytest.mark.parametrize(
    ("plan", "size"), [({"batch": 6}, 6), ({"batch": 8, "contrastive_batch": 10}, 10)]
)
def test_batches_that_cannot_be_shared(plan: dict[str, int], size: int) -> None:
    """Of objectives that are on."""
    with pytest.raises(InputError) as error:
        StepDataset(recipe(plan=plan), [text_corpus(20)], processes=4)
    assert str(error.value) == (
        f"a batch of {size} cannot be shared by 4 processes: make it a multiple of them"
    )
    plan = {"batch": 8, "contrastive_batch": 8, **plan}
    other = next_token_only if plan["batch"] == 8 else contrastive_only
    assert StepDataset(other(plan=plan), [text_corpus(20)], processes=4)[0].passes


# -- passes ------------------------------------------------------------------------------------


def share_of_padding(part: Pass) -> float:
    tokens, places = count_positions([part])
    return 1 - tokens / places


@given(worlds())
@SOME
def test_passes_stay_within_their_bounds(world: World) -> None:
    steps, memory = StepDataset(*world), world.recipe.memory
    for batch in map(steps.__getitem__, range(len(steps))):
        for part in batch.passes:
            rows, width = part.layout.shape
            assert rows == 1 or rows * width <= memory.tokens
            assert share_of_padding(part) <= memory.padding + 1e-9


@given(worlds())
@SOME
def test_padding_is_what_is_no_token(world: World) -> None:
    batch = StepDataset(*world)[2]
    tokens = sum(len(r.text) + r.specials + len(r.suffix) for r in rows_of(batch.passes))
    places = sum(rows * width for rows, width in (p.layout.shape for p in batch.passes))
    assert count_positions(batch.passes) == (tokens, places)
    assert count_positions([]) == (0, 0)


LENGTHS = st.lists(st.integers(1, 40), max_size=30)


@given(lengths=LENGTHS, budget=st.integers(1, 200), bound=st.floats(0, 1))
def test_planned_batches_hold_so_much_padding_at_most(
    lengths: list[int], budget: int, bound: float
) -> None:
    """And are as large as that allows: what begins a batch had no room in the one before."""
    batches = list(plan_batches(lengths, budget, bound))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    in_order = [[lengths[i] for i in batch] for batch in batches]
    assert [length for batch in in_order for length in batch] == sorted(lengths, reverse=True)
    for batch in in_order:
        places = len(batch) * batch[0]
        assert len(batch) == 1 or places <= budget
        assert 1 - sum(batch) / places <= bound + 1e-9
    for before, after in pairwise(in_order):
        tried = [*before, after[0]]
        places = len(tried) * tried[0]
        assert places > budget or 1 - sum(tried) / places > bound - 1e-9


def test_planned_batches_of_known_lengths() -> None:
    lengths = [3, 5, 3, 4, 5, 3]
    for bound, wanted in (
        (0.0, [[5, 5], [4], [3, 3, 3]]),
        (0.1, [[5, 5, 4], [3, 3, 3]]),  # a fifteenth of padding; with a 3 more, 3 of 20
        (1.0, [[5, 5, 4, 3, 3, 3]]),
    ):
        found = plan_batches(lengths, 100, bound)
        assert [[lengths[i] for i in batch] for batch in found] == wanted
