"""The contract of both LlamaIndex adapters; the tests of each distribution subclass it."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from pydantic import ValidationError

import gem_rag
from gem_rag import Gem, GemError, InputError

TEXTS = ["Return the", "open a file", "sort a list in place", "raises ValueError if", "x", "import"]
CONCURRENT_CALLS = 16


class Contract:
    """Tests of an adapter, which a subclass names.

    Attributes:
        adapter: The class of the adapter.
        base: LlamaIndex's base class.
        blocking: The method of `Gem` that does the work.
        event: The event type of callbacks.
        settings: Arguments that differ from their defaults.
    """

    adapter: type[Any]
    base: type[Any]
    blocking: str
    event: CBEventType
    settings: dict[str, Any]

    def use(self, adapter: Any, text: str) -> Any:
        """Process a text with the adapter."""
        raise NotImplementedError

    async def ause(self, adapter: Any, text: str) -> Any:
        """Process a text asynchronously."""
        raise NotImplementedError

    def fake_result(self, gem: Gem) -> Any:
        """A value that `blocking` could return."""
        raise NotImplementedError

    # -- construction --------------------------------------------------------------------------

    def test_it_is_what_llama_index_expects(self) -> None:
        assert self.base in self.adapter.__mro__
        assert self.adapter.class_name() == self.adapter.__name__

    def test_it_is_made_without_loading_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gem_rag, "load", _fail_to_load)
        assert self.adapter("gem-tiny").model_name == "gem-tiny"
        assert self.adapter(**self.settings).to_dict()

    def test_a_name_and_a_gem_are_the_same_weights(self, gem: Gem) -> None:
        assert self.adapter("gem-tiny").gem is gem
        assert self.adapter(gem).gem is self.adapter(model=gem).gem is gem
        assert self.adapter(model_name="gem-tiny").gem is gem
        assert self.adapter(gem).model_name == "gem-tiny"

    def test_a_folder_is_a_model(self, chat_folder: Path) -> None:
        adapter = self.adapter(chat_folder, model_kwargs={"truncation": "error"})
        assert adapter.gem.name == adapter.model_name == str(chat_folder)
        assert adapter.gem.truncation == "error"

    def test_an_unknown_model_is_named(self) -> None:
        with pytest.raises(InputError, match="gem-tinny"):
            self.use(self.adapter("gem-tinny"), "text")

    def test_a_wrong_field_is_pydantics_error(self) -> None:
        with pytest.raises(ValidationError, match="temprature"):
            self.adapter("gem-tiny", temprature=1)
        with pytest.raises(ValidationError, match="vlm"):
            self.adapter("gem-tiny", engine="vlm")

    def test_a_wrong_option_of_load_is_named(self) -> None:
        with pytest.raises(InputError, match="overlang"):
            self.use(self.adapter("gem-tiny", model_kwargs={"overlang": "error"}), "text")

    def test_a_gem_is_closed_by_its_owner(self) -> None:
        with gem_rag.load("gem-tiny", truncation="windows") as gem:
            adapter = self.adapter(gem, model_kwargs={"truncation": "windows"})
            self.use(adapter, TEXTS[0])
            copy = pickle.loads(pickle.dumps(adapter))
            assert copy.gem is gem  # loaded by the same name and options
            copy.gem.close()
        with pytest.raises(GemError, match="closed"):
            self.use(adapter, TEXTS[0])

    # -- serialization -------------------------------------------------------------------------

    def test_to_dict_and_back(self, gem: Gem) -> None:
        adapter = self.adapter("gem-tiny", **self.settings)
        state = json.loads(json.dumps(adapter.to_dict()))
        assert state["class_name"] == self.adapter.__name__
        assert {**state, **self.settings, "model_name": "gem-tiny"} == state
        assert self.adapter.from_dict(state).to_dict() == adapter.to_dict()
        assert self.adapter.from_dict(self.adapter(gem).to_dict()).gem is gem

    def test_pickles_contain_no_weights(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        adapter = self.adapter("gem-tiny", **self.settings)
        expected = self.use(adapter, TEXTS[0])
        with caplog.at_level(logging.WARNING):
            data = pickle.dumps(adapter)
        assert len(data) < 10_000
        assert not caplog.records
        assert adapter.gem  # still there
        with monkeypatch.context() as patched:
            patched.setattr(gem_rag, "load", _fail_to_load)
            copy = pickle.loads(data)
        assert copy.to_dict() == adapter.to_dict()
        assert self.use(copy, TEXTS[0]) == pytest.approx(expected, abs=1e-5)

    # -- use -----------------------------------------------------------------------------------

    async def test_callbacks_are_called(self) -> None:
        handler = LlamaDebugHandler(print_trace_on_end=False)
        adapter = self.adapter("gem-tiny", callback_manager=CallbackManager([handler]))
        self.use(adapter, TEXTS[0])
        await self.ause(adapter, TEXTS[0])
        pairs = handler.get_event_pairs(self.event)
        assert [len(pair) for pair in pairs] == [2, 2]
        assert all("exception" not in (end.payload or {}) for _, end in pairs)

    async def test_concurrent_results_equal_sequential_ones(self) -> None:
        adapter = self.adapter("gem-tiny")
        expected = [self.use(adapter, text) for text in TEXTS]
        results = await asyncio.gather(*(self.ause(adapter, text) for text in TEXTS))
        assert results == [pytest.approx(value, abs=1e-5) for value in expected]
        with ThreadPoolExecutor(len(TEXTS)) as pool:
            fresh = self.adapter("gem-tiny")
            results = list(pool.map(lambda text: self.use(fresh, text), TEXTS))
        assert results == [pytest.approx(value, abs=1e-5) for value in expected]

    async def test_calls_are_concurrent(self, gem: Gem, monkeypatch: pytest.MonkeyPatch) -> None:
        """All calls reach the model before the first returns."""
        barrier = threading.Barrier(CONCURRENT_CALLS)

        def wait(*args: Any, **kwargs: Any) -> Any:
            barrier.wait(timeout=60)
            return self.fake_result(gem)

        monkeypatch.setattr(gem, self.blocking, wait)
        adapter = self.adapter(gem)
        await asyncio.gather(*(self.ause(adapter, "text") for _ in range(CONCURRENT_CALLS)))

    async def test_the_event_loop_is_not_blocked(
        self, gem: Gem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The model waits for an event that the event loop sets later."""
        started, proceed = threading.Event(), threading.Event()

        def wait(*args: Any, **kwargs: Any) -> Any:
            started.set()
            assert proceed.wait(timeout=60)
            return self.fake_result(gem)

        monkeypatch.setattr(gem, self.blocking, wait)
        task = asyncio.create_task(self.ause(self.adapter(gem), "text"))
        while not started.is_set() and not task.done():
            await asyncio.sleep(0.001)
        assert not task.done()
        proceed.set()
        await task


def _fail_to_load(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("weights were loaded")
