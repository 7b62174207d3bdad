"""Streams give what `generate` gives, whatever their readers do; threads get what one gets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
from helpers import close_to, written
from hypothesis import given
from hypothesis import strategies as st

import gem_rag
from gem_rag.errors import GemError
from gem_rag.generation.listeners import StreamListener
from gem_rag.generation.sampling import Sampling
from gem_rag.generation.stop_strings import cut_at_stop
from gem_rag.model import Gem

PROMPTS = ["hello", "The quick brown fox", "x y z", "def add(first, second):\n"]


@pytest.mark.parametrize("stops", [0, 1, 2])
def test_a_stream_is_what_generate_gives(talker: Gem, stops: int) -> None:
    free = talker.generate([PROMPTS[1]], max_tokens=16)[0]
    pieces = written(talker, free.tokens)
    stop = [pieces[7] + pieces[8], pieces[6][-1] + pieces[7]][:stops]
    expected = talker.generate([PROMPTS[1]], max_tokens=16, stop=stop)[0]
    streamed = list(talker.stream(PROMPTS[1], max_tokens=16, stop=stop))
    assert expected.finish_reason == ("stop" if stops else "length")
    assert "".join(streamed) == expected.text
    assert len(streamed) > 2


@given(
    text=st.text("ab é€😀\ufffd", max_size=12),
    broken=st.none() | st.lists(st.integers(len(helpers.SPECIAL_TOKENS), helpers.VOCABULARY - 1)),
    stop=st.lists(st.text("ab é€", min_size=1, max_size=3), max_size=2),
)
def test_a_stream_shows_no_half_characters_and_no_stop_strings(
    talker: Gem, text: str, broken: list[int] | None, stop: list[str]
) -> None:
    """The pieces of any text, token by token, are the text up to its stop string."""
    assert all(len(talker.tokenize(character)) > 2 for character in "é€😀")  # several tokens each
    ids = talker.tokenize(text)[1:] if broken is None else broken
    listener = StreamListener(1, Sampling(stop=stop), talker._tokenizer.decode)
    text = ""
    for number, i in enumerate(ids, start=1):
        text = talker._tokenizer.decode(ids[:number])
        ends = any(s in text for s in stop)
        assert listener.add([i], "length" if number == len(ids) else None) == (
            not ends and number < len(ids)
        )
        if ends:
            break  # generation ends here
    if not ids:
        listener.add([], "stop")
    shown = list(listener.pieces())
    assert "".join(shown) == cut_at_stop(text, stop)[0]
    assert "" not in shown


@pytest.mark.parametrize("tokens", [1, 240])
def test_an_abandoned_stream_ends(talker: Gem, tokens: int) -> None:
    steps: list[int] = []
    hook = talker._engine._model.register_forward_hook(lambda *_: steps.append(1))
    stream = talker.stream("hello", max_tokens=tokens)
    next(stream)
    stream.close()
    hook.remove()
    assert len(steps) < 240
    assert not talker._engine._batcher._batch.requests  # nor is its memory kept
    assert len(talker.generate(["hello"], max_tokens=3)[0].tokens) == 3


def test_a_stream_that_is_never_read_starts_nothing(talker: Gem) -> None:
    stream = talker.stream("hello", max_tokens=200)
    assert len(talker.generate(["hello"], max_tokens=3)[0].tokens) == 3
    del stream


def test_a_half_read_stream_blocks_nobody(talker: Gem) -> None:
    stream = talker.stream("hello", max_tokens=40)
    first = next(stream)
    (whole,) = talker.generate(["hello"], max_tokens=40)
    talker.embed_queries(["meanwhile"])
    assert first + "".join(stream) == whole.text


@pytest.mark.parametrize("error", [ValueError("no luck"), MemoryError("no luck")])
def test_a_failure_in_the_worker_reaches_the_reader(
    talker: Gem, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(talker._engine._model, "forward", failing)
        with pytest.raises(GemError, match="generation failed: no luck"):
            list(talker.stream("hello", max_tokens=3))
    assert "".join(talker.stream("hello", max_tokens=3))


def test_a_stream_of_a_model_closed_meanwhile_fails_cleanly(folder: Path) -> None:
    gem = gem_rag.load(folder)
    stream = gem.stream("hello", max_tokens=3)
    gem.close()
    with pytest.raises(GemError, match="closed"):
        list(stream)


# -- many threads ---


def test_threads_get_what_one_caller_gets(talker: Gem) -> None:
    texts = [f"text number {i} {'word ' * (i % 5)}" for i in range(64)]

    def work(number: int) -> Any:
        text = texts[number]
        if number % 4 == 0:
            return talker.generate([text], max_tokens=6)[0]
        if number % 4 == 1:
            return "".join(talker.stream(text, max_tokens=6))
        if number % 4 == 2:
            return talker.generate([text], max_tokens=6, temperature=1.0, seed=number)[0]
        return talker.embed_documents([text])

    expected = [work(number) for number in range(64)]
    barrier = threading.Barrier(64)

    def at_once(number: int) -> Any:
        barrier.wait(timeout=60)
        return work(number)

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(at_once, range(64)))
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, np.ndarray):
            assert close_to(one, other, tolerance=1e-6)
        else:
            assert one == other
