"""Calls that wait run together with their like, and each gets its own results."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from gem_rag.aio import iterate_in_thread, run_in_thread
from gem_rag.engines.micro_batching import MicroBatcher
from gem_rag.model import Gem


class Recorder:
    """Doubles numbers once `free`; remembers what ran together."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.runs: list[tuple[list[int], str]] = []

    def __call__(self, items: Sequence[int], settings: str) -> list[int]:
        self.runs.append((list(items), settings))
        assert self.free.wait(30)
        if 13 in items:
            raise ValueError("unlucky")
        return [2 * item for item in items]


def run_all(batcher: MicroBatcher[int, str, int], recorder: Recorder, calls: list) -> list:
    """The results, or errors, of calls that all wait while the first one runs."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = []
        for items, settings in calls:
            futures.append(pool.submit(batcher, items, settings, len(items)))
            while not recorder.runs or len(batcher._waiting) < len(futures) - 1:
                threading.Event().wait(0.001)
        recorder.free.set()
        return [future.exception() or future.result() for future in futures]


def test_those_that_wait_run_together_with_their_like() -> None:
    recorder = Recorder()
    batcher = MicroBatcher(recorder, 4, exclusive=lambda settings: settings == "seed")
    calls = [([0], "a"), ([1], "a"), ([2, 3], "a"), ([4], "b"), ([5, 6], "a"), ([7], "seed"),
             ([8], "seed")]  # fmt: skip
    assert run_all(batcher, recorder, calls) == [[2 * i for i in items] for items, _ in calls]
    ran = sorted((sorted(items), settings) for items, settings in recorder.runs)
    assert ([4], "b") in ran
    assert ([7], "seed") in ran
    assert ([8], "seed") in ran
    together = [items for items, settings in ran if settings == "a"]
    assert len(together) < 4  # not one by one
    assert max(map(len, together)) <= 4


def test_an_error_reaches_those_who_ran_and_nobody_else() -> None:
    recorder = Recorder()
    batcher = MicroBatcher(recorder, 2, exclusive=lambda settings: False)
    found = run_all(batcher, recorder, [([0], "a"), ([13], "b"), ([1], "a")])
    assert found[0] == [0]
    assert isinstance(found[1], ValueError)
    assert found[2] == [2]


def test_concurrent_generations_are_those_of_one_by_one(talker: Gem) -> None:
    prompts = [f"{i} hello" for i in range(12)]
    wanted = [talker.generate([prompt], max_tokens=6)[0].text for prompt in prompts]

    async def together() -> list[str]:
        calls = [run_in_thread(talker.generate, [prompt], max_tokens=6) for prompt in prompts]
        return [found[0].text for found in await asyncio.gather(*calls)]

    assert asyncio.run(together()) == wanted


def test_a_seeded_sample_is_the_same_in_company(talker: Gem) -> None:
    settings = {"max_tokens": 8, "temperature": 1.0, "seed": 5}
    (alone,) = talker.generate(["hello"], **settings)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: talker.generate(["hello"], **settings)[0], range(6)))
    assert found == [alone] * 6


def test_a_stream_can_be_read_and_left_from_asyncio(talker: Gem) -> None:
    (whole,) = talker.generate(["hello"], max_tokens=6)
    stream = talker.stream("hello", max_tokens=6)

    async def read() -> str:
        return "".join([piece async for piece in iterate_in_thread(stream)])

    async def leave() -> None:
        async for _ in iterate_in_thread(talker.stream("hello", max_tokens=200)):
            break

    assert asyncio.run(read()) == whole.text
    asyncio.run(leave())
    assert talker.generate(["hello"], max_tokens=6) == [whole]


def test_errors_come_through_threads(talker: Gem) -> None:
    with pytest.raises(ValueError, match="a list of prompts"):
        asyncio.run(run_in_thread(talker.generate, "hello"))
