"""Calls of all kinds generate together; each gets what it gets alone, and ends when it is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import ARCHITECTURES, EOS, PAD, build_model, random_ids

from gem_rag.aio import iterate_in_thread, run_in_thread
from gem_rag.engines.continuous_batching import ContinuousBatcher
from gem_rag.engines.decoding import DecodingBatch, Request
from gem_rag.errors import GemError
from gem_rag.generation.listeners import GenerationListener, StreamListener
from gem_rag.generation.sampling import Generation, Sampling
from gem_rag.model import Gem

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
MIXED: list[dict[str, Any]] = [
    {"max_tokens": 4},
    {"max_tokens": 30},
    {"max_tokens": 12, "temperature": 1.0, "seed": 3},
    {"max_tokens": 12, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 4},
    {"max_tokens": 12, "presence_penalty": 1.0, "frequency_penalty": 0.5, "logprobs": 2},
    {"max_tokens": 12, "repetition_penalty": 1.3, "temperature": 1.0, "min_p": 0.1, "seed": 5},
    {"max_tokens": 20, "stop": ["a", "e"]},
    {"max_tokens": 24, "schema": SCHEMA},
]


@contextmanager
def watched(gem: Gem, before: Callable[[int], None] = lambda number: None) -> Iterator[list[int]]:
    """The sizes of the batches that run inside; `before` is called first, with their number."""
    sizes: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        sizes.append(len(args[0]))
        before(len(sizes) - 1)

    hook = gem._engine._model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield sizes
    finally:
        hook.remove()


def waiting(gem: Gem) -> int:
    """Calls that have come and not begun."""
    return len(gem._engine._batcher._waiting)


def present(gem: Gem) -> int:
    """Texts under way, and calls that have not begun."""
    batcher = gem._engine._batcher
    return len({*batcher._joining, *batcher._batch.requests}) + waiting(gem)


def until_present(gem: Gem, count: int) -> Callable[[int], None]:
    """Lets the second pass wait until so many texts or calls are there."""

    def hold(step: int) -> None:
        if step == 1:
            spin_until(lambda: present(gem) >= count)

    return hold


def spin_until(true: Callable[[], bool]) -> None:
    deadline = threading.Event()
    for _ in range(30_000):
        if true():
            return
        deadline.wait(0.001)
    raise AssertionError("it never came")


# -- one batch ---------------------------------------------------------------------------------


def request(prompt: list[int], max_tokens: int = 8, **sampling: Any) -> Request:
    settings = Sampling(max_tokens=max_tokens, **sampling)
    listener = GenerationListener(len(prompt), settings, lambda ids: " ".join(map(str, ids)))
    return Request(prompt, settings, frozenset([EOS]), listener)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt2", "opt"])
@torch.inference_mode()
def test_texts_are_those_of_transformers_whoever_joins_and_leaves(architecture: str) -> None:
    model = build_model(architecture)
    generator = torch.Generator().manual_seed(0)
    requests = [
        request(random_ids(length, generator), max_tokens)
        for length, max_tokens in ((3, 9), (11, 2), (1, 12), (7, 5), (19, 7))
    ]
    batch = DecodingBatch(PAD)
    for joining in (requests[:2], requests[2:4], requests[4:]):
        batch.join(model, joining)
        batch.step(model)
    while batch.requests:
        batch.step(model)
    for one in requests:
        alone = model.generate(
            torch.tensor([one.prompt]), do_sample=False, max_new_tokens=one.sampling.max_tokens,
            eos_token_id=EOS, pad_token_id=PAD,
        )[0, len(one.prompt) :].tolist()  # fmt: skip
        assert one.tokens == [token for token in alone if token != EOS]
        assert one.listener.generation.result(0).tokens == tuple(one.tokens)


# -- many calls --------------------------------------------------------------------------------


def test_calls_of_different_settings_run_together(talker: Gem) -> None:
    prompts = [
        "hello",
        "The quick brown fox jumps over",
        "x",
        "a b c d e f",
        "def add(",
        "1",
        "True",
        "a list",
    ]
    alone = [talker.generate([p], **s)[0] for p, s in zip(prompts, MIXED, strict=True)]

    def work(number: int) -> Generation:
        return talker.generate([prompts[number]], **MIXED[number])[0]

    hold = until_present(talker, len(prompts))
    with watched(talker, hold) as sizes, ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(work, range(len(prompts))))
    for one, expected in zip(found, alone, strict=True):
        logprobs = [entry.logprob for entry in one.logprobs]
        assert logprobs == pytest.approx([e.logprob for e in expected.logprobs], abs=1e-4)
        assert replace(one, logprobs=()) == replace(expected, logprobs=())
    assert max(sizes) == len(prompts)
    assert len(sizes) < sum(len(generation.tokens) for generation in alone)


def test_streams_run_together(talker: Gem) -> None:
    """None waits for another to end: a pass gives all of them a token."""
    prompts = [f"{i} hello" for i in range(4)]
    wanted = [talker.generate([prompt], max_tokens=40)[0] for prompt in prompts]
    streams = [talker.stream(prompt, max_tokens=40) for prompt in prompts]
    with watched(talker, until_present(talker, 4)) as sizes, ThreadPoolExecutor(4) as pool:
        texts = list(pool.map("".join, streams))
    assert texts == [one.text for one in wanted]
    assert len(sizes) <= 40 + 2 * len(prompts)


def test_a_call_of_many_prompts_lets_others_in(
    talker: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talker._engine._batcher, "_capacity", 64)
    prompts = [f"{i} word" for i in range(60)]
    order: list[str] = []
    begun, asked = threading.Event(), threading.Event()

    def hold(step: int) -> None:
        begun.set()
        if step == 1:
            assert asked.wait(30)

    def bulk() -> None:
        talker.generate(prompts, max_tokens=8)
        order.append("bulk")

    def one() -> None:
        assert begun.wait(30)
        talker.generate(["hello"], max_tokens=8)
        order.append("one")

    with watched(talker, hold) as sizes, ThreadPoolExecutor(2) as pool:
        done = [pool.submit(bulk), pool.submit(one)]
        assert begun.wait(30)
        spin_until(lambda: waiting(talker) == 2)
        asked.set()
        for future in done:
            future.result(60)
    assert order == ["one", "bulk"]
    assert 1 < max(sizes) < 10  # as many as there is room for


def test_other_users_of_the_model_get_their_turn(talker: Gem) -> None:
    stream = talker.stream("hello", max_tokens=200)
    next(stream)
    with talker.language_model() as model:
        assert model is talker._engine._model
    assert talker.score("hello", [" there"]).shape == (1,)
    assert talker.embed_queries(["meanwhile"]).shape == (1, talker.dim)
    stream.close()


# -- those who leave ---------------------------------------------------------------------------


def test_a_call_that_timed_out_ends_at_once(talker: Gem) -> None:
    """Nothing more is computed for it, and others go on."""
    (whole,) = talker.generate(["hello"], max_tokens=20)
    both, cancelled = threading.Event(), threading.Event()

    def hold(step: int) -> None:
        if step == 1:
            assert both.wait(30)
        if step == 8:
            assert cancelled.wait(30)

    async def main() -> list[Generation]:
        other = asyncio.create_task(run_in_thread(talker.generate, ["hello"], max_tokens=20))
        long = asyncio.create_task(run_in_thread(talker.generate, ["x y z"] * 3, max_tokens=200))
        await run_in_thread(spin_until, lambda: present(talker) >= 2)
        both.set()
        await run_in_thread(spin_until, lambda: max(sizes, default=0) >= 3)
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        cancelled.set()
        return await other

    with watched(talker, hold) as sizes:
        assert asyncio.run(main()) == [whole]
    assert len(sizes) < 30  # not 200
    assert sizes[-1] == 1


def test_a_call_cancelled_before_its_turn_never_runs(talker: Gem) -> None:
    batcher = talker._engine._batcher
    first, late = request(talker.tokenize("hello")), request(talker.tokenize("late"))

    def ended(one: Request) -> Callable[[], None]:
        return lambda: batcher.run_until(one.listener.generation.done)

    with ThreadPoolExecutor(2) as pool:
        with talker.language_model():  # the model is in use
            batcher.submit([first])
            waits = [pool.submit(ended(first))]
            spin_until(lambda: waiting(talker) == 0)
            batcher.submit([late])
            waits.append(pool.submit(ended(late)))
            batcher.cancel([first, late])
        for wait in waits:
            wait.result(30)
    for one in (first, late):
        with pytest.raises(GemError, match="the call was cancelled"):
            one.listener.generation.result(0)
    assert not late.tokens


def test_ctrl_c_is_for_one_caller(talker: Gem) -> None:
    """Whoever was at work for all; the others' texts go on from where they are."""
    (whole,) = talker.generate(["hello"], max_tokens=20)
    stream = talker.stream("hello", max_tokens=20)
    first = next(stream)

    def interrupt(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with watched(talker, interrupt), pytest.raises(KeyboardInterrupt):
        talker.generate(["x y z"], max_tokens=20)
    assert first + "".join(stream) == whole.text


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


def test_a_listener_hears_one_end() -> None:
    listener = StreamListener(1, Sampling(), str)
    assert listener.add([1], None)
    listener.fail(GemError("gone"))
    assert not listener.add([2], "stop")
    listener.fail(GemError("again"))
    with pytest.raises(GemError, match="gone"):
        list(listener.pieces())


# -- failures ----------------------------------------------------------------------------------


def test_an_error_reaches_those_who_ran_and_nobody_else(talker: Gem) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def fail(step: int) -> None:
        if not entered.is_set():
            entered.set()
            assert go_on.wait(30)
            raise ValueError("unlucky")

    with watched(talker, fail), ThreadPoolExecutor(2) as pool:
        first = pool.submit(talker.generate, ["hello"], max_tokens=4)
        assert entered.wait(30)
        second = pool.submit(talker.generate, ["hello"], max_tokens=4)
        spin_until(lambda: waiting(talker) == 1)
        go_on.set()
        with pytest.raises(GemError, match="generation failed: unlucky"):
            first.result(30)
        assert len(second.result(30)[0].tokens) == 4


def test_texts_too_large_together_go_on_in_smaller_numbers(talker: Gem) -> None:
    prompts = [f"{i} hello" for i in range(8)]
    wanted = talker.generate(prompts, max_tokens=10)
    capacity = talker._engine._batcher._capacity

    def small_device(module: Any, args: Any, kwargs: Any) -> None:
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = talker._engine._model.register_forward_pre_hook(small_device, with_kwargs=True)
    try:
        with pytest.warns(UserWarning, match="8 texts of .* tokens together do not fit"):
            assert talker.generate(prompts, max_tokens=10) == wanted
    finally:
        hook.remove()
        talker._engine._batcher._capacity = capacity


def test_a_text_too_large_for_the_device_is_refused(talker: Gem) -> None:
    def no_room(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    talker.generate(["hello " * 25], max_tokens=1)
    assert len(talker._engine._prefixes.store)
    hook = talker._engine._model.register_forward_pre_hook(no_room)
    try:
        with pytest.raises(GemError, match=r"does not fit into the memory.*lower max_tokens"):
            talker.generate(["hello"], max_tokens=3)
    finally:
        hook.remove()
    assert len(talker._engine._prefixes.store) == 0  # its memory was freed


def test_waiting_calls_fail_with_a_model_that_is_gone() -> None:
    def gone() -> Any:
        raise GemError("this Gem has been closed: load the model again")

    batcher = ContinuousBatcher(
        gone, threading.Lock(), lambda: DecodingBatch(PAD), capacity=20, prompt_tokens=10
    )
    requests = [request([5] * 6) for _ in range(5)]
    batcher.submit(requests)
    batcher.run_until(lambda: all(one.listener.generation.done() for one in requests))
    for one in requests:
        with pytest.raises(GemError, match="has been closed"):
            one.listener.generation.result(0)


def test_errors_come_through_threads(talker: Gem) -> None:
    with pytest.raises(ValueError, match="a list of prompts"):
        asyncio.run(run_in_thread(talker.generate, "hello"))
