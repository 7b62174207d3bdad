"""The queue gives every call its own vectors in order, keeps to its budget and takes its turns."""

from __future__ import annotations

import math
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem_rag.core.arrays import FloatArray
from gem_rag.core.layout import Row
from gem_rag.engines.vllm import embedding_queue as batching
from gem_rag.engines.vllm.embedding_queue import Batch, EmbeddingQueue
from gem_rag.errors import GemError, InputError


def vectors_of(rows: list[Row]) -> FloatArray:
    """A vector for each span that says whose it is: the row's first token, start and stop."""
    named = [(row.text[0], *span) for row in rows for span in row.spans]
    return np.array(named, np.float32).reshape(-1, 3)


def whole(name: int, length: int = 4) -> Row:
    return Row.whole([name] * length)


def asked(queue: EmbeddingQueue, *rows: Row) -> Future[FloatArray]:
    future: Future[FloatArray] = Future()
    queue.add(rows, future)
    return future


def turn(queue: EmbeddingQueue, generating: bool = False) -> Batch:
    batch = queue.take(generating)
    queue.done(batch, vectors_of(batch.rows))
    return batch


def names(batch: Batch) -> list[int]:
    return [row.text[0] for row in batch.rows]


def is_done_with(future: Future[FloatArray], *rows: Row) -> bool:
    return future.done() and np.array_equal(future.result(), vectors_of(list(rows)))


@st.composite
def some_calls(draw: st.DrawFn) -> list[list[Row]]:
    """Rows by call; every row has a name of its own."""
    calls: list[list[Row]] = []
    name = 0
    for count in draw(st.lists(st.integers(1, 4), min_size=1, max_size=6)):
        calls.append([])
        for _ in range(count):
            length = draw(st.integers(1, 9))
            stops = draw(st.lists(st.integers(1, length), min_size=1, max_size=3))
            calls[-1].append(Row([name] * length, tuple((stop // 2, stop) for stop in stops)))
            name += 1
    return calls


# -- batches -----------------------------------------------------------------------------------


@given(
    calls=some_calls(),
    k=st.integers(1, 3),
    budgets=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    turns=st.lists(st.sampled_from([None, False, True]), max_size=12),
)
def test_every_call_gets_its_own_vectors_within_the_budget(
    calls: list[list[Row]], k: int, budgets: tuple[int, int], turns: list[bool | None]
) -> None:
    queue = EmbeddingQueue(k, *budgets, 0.5)
    futures: list[Future[FloatArray]] = []
    embedded: list[int] = []

    def embed(generating: bool) -> None:
        batch = turn(queue, generating)
        most = min(budgets) if generating else budgets[0]
        assert len(batch.rows) == 1 or sum(row.length(k) for row in batch.rows) <= most
        assert batch.rows
        embedded.extend(names(batch))

    for number, rows in enumerate(calls):
        futures.append(asked(queue, *rows))
        for generating in turns[number::3]:
            if queue and generating is not None:
                embed(generating)
    while queue:
        embed(len(embedded) % 2 == 0)
    for rows, future in zip(calls, futures, strict=True):
        assert is_done_with(future, *rows)


def test_a_batch_is_as_large_as_the_budget_allows() -> None:
    queue = EmbeddingQueue(1, 15, 10, 0.5)
    asked(queue, *(whole(name) for name in range(7)))  # five tokens each
    assert [names(turn(queue, generating)) for generating in (False, True, True)] == [
        [0, 1, 2], [3, 4], [5, 6],
    ]  # fmt: skip
    assert not queue


def test_a_turn_beside_generation_is_never_larger_than_a_batch() -> None:
    queue = EmbeddingQueue(1, 5, 100, 0.5)
    asked(queue, whole(0), whole(1))
    assert names(turn(queue, generating=True)) == [0]


def test_a_row_longer_than_the_budget_goes_alone() -> None:
    queue = EmbeddingQueue(1, 10, 10, 0.5)
    asked(queue, whole(0), whole(1, 50), whole(2))
    assert [names(turn(queue)) for _ in range(3)] == [[0], [1], [2]]


def test_calls_take_turns_so_that_a_small_one_does_not_wait_for_a_large_one() -> None:
    queue = EmbeddingQueue(1, 20, 20, 0.5)  # four rows
    large = asked(queue, *(whole(name) for name in range(100)))
    turn(queue)
    small = asked(queue, whole(500), whole(501))
    assert len(queue) == 98
    assert names(turn(queue)) == [4, 500, 5, 501]
    assert is_done_with(small, whole(500), whole(501))
    while queue:
        turn(queue)
    assert is_done_with(large, *(whole(name) for name in range(100)))


def test_a_call_is_done_with_its_last_row_only() -> None:
    queue = EmbeddingQueue(1, 5, 5, 0.5)
    future = asked(queue, whole(0), whole(1))
    turn(queue)
    assert not future.done()
    turn(queue)
    assert is_done_with(future, whole(0), whole(1))


# -- calls that end otherwise ------------------------------------------------------------------


def test_rows_of_cancelled_calls_are_left_out() -> None:
    queue = EmbeddingQueue(1, 100, 100, 0.5)
    futures = [asked(queue, whole(name), whole(name + 10)) for name in range(3)]
    futures[1].cancel()
    assert names(turn(queue)) == [0, 2, 10, 12]
    assert is_done_with(futures[0], whole(0), whole(10))
    assert is_done_with(futures[2], whole(2), whole(12))


def test_a_batch_is_empty_when_all_were_cancelled() -> None:
    queue = EmbeddingQueue(1, 100, 100, 0.5)
    asked(queue, whole(0)).cancel()
    assert queue.take(False).rows == []
    assert not queue


def test_a_call_cancelled_during_its_turn_disturbs_nobody() -> None:
    queue = EmbeddingQueue(1, 100, 100, 0.5)
    futures = [asked(queue, whole(name)) for name in range(3)]
    batch = queue.take(False)
    futures[0].cancel()
    queue.done(batch, vectors_of(batch.rows))
    assert futures[0].cancelled()
    assert is_done_with(futures[1], whole(1))
    assert is_done_with(futures[2], whole(2))


def test_an_error_fails_exactly_the_calls_in_the_batch() -> None:
    queue = EmbeddingQueue(1, 10, 10, 0.5)
    first, second, third = (
        asked(queue, *rows) for rows in ([whole(0)], [whole(1), whole(2)], [whole(3)])
    )
    error = GemError("out of memory")
    batch = queue.take(False)
    assert names(batch) == [0, 1]
    queue.failed(batch, error)
    assert first.exception(0) is second.exception(0) is error
    assert not third.done()
    assert names(turn(queue)) == [3]  # the rest of a failed call is not embedded
    assert is_done_with(third, whole(3))


def test_the_end_fails_all_that_wait_and_nobody_else() -> None:
    queue = EmbeddingQueue(1, 5, 5, 0.5)
    done, halved, waiting, cancelled = (
        asked(queue, *rows) for rows in ([whole(0)], [whole(1), whole(2)], [whole(3)], [whole(4)])
    )
    cancelled.cancel()
    turn(queue)
    turn(queue)
    error = GemError("closed")
    queue.fail_all(error)
    assert not queue
    assert is_done_with(done, whole(0))
    assert halved.exception(0) is waiting.exception(0) is error
    assert cancelled.cancelled()


# -- turns -------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still; set its `now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("share", "pause"), [(0.5, 2.0), (0.2, 8.0), (0.8, 0.5), (1, 0.0)])
def test_embeddings_keep_to_their_share_of_the_time(
    clock: Any, share: float, pause: float, fails: bool
) -> None:
    queue = EmbeddingQueue(1, 5, 5, share)
    asked(queue, whole(0), whole(1))
    assert queue.pause(True) == 0
    batch = queue.take(True)
    clock.now += 2
    if fails:
        queue.failed(batch, GemError("out of memory"))
    else:
        queue.done(batch, vectors_of(batch.rows))
    assert queue.pause(True) == pytest.approx(pause)
    assert queue.pause(False) == 0
    clock.now += pause / 2
    assert queue.pause(True) == pytest.approx(pause / 2)
    clock.now += pause
    assert queue.pause(True) == 0


def test_a_request_that_follows_another_waits_for_a_small_batch(clock: Any) -> None:
    queue = EmbeddingQueue(1, 15, 5, 0.5)
    asked(queue, *(whole(name) for name in range(7)))  # five tokens each
    assert names(turn(queue, generating=True)) == [0]
    clock.now += 1
    assert names(turn(queue)) == [1]
    clock.now += 2
    assert names(turn(queue)) == [2, 3, 4]


@pytest.mark.parametrize("share", [0, -0.1, 1.01, 2, math.inf, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="embed_share must be above 0 and at most 1"):
        EmbeddingQueue(1, 10, 10, share)
