"""What both LlamaIndex adapters promise; each distribution's tests fill in what is its own.

Knows nothing about which adapter it is given.
"""

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
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem

TEXTS = ["Return the", "open a file", "sort a list in place", "raises ValueError if", "x", "import"]
AT_ONCE = 16


class Contract:
    """To be subclassed with an adapter.

    adapter: the adapter's class.
    base: LlamaIndex's class of its kind.
    blocking: the method of `Gem` that does the work.
    event: what callbacks call the work.
    settings: arguments other than their defaults.
    """

    adapter: type[Any]
    base: type[Any]
    blocking: str
    event: CBEventType
    settings: dict[str, Any]

    def use(self, adapter: Any, text: str) -> Any:
        """Do the adapter's work on a text."""
        raise NotImplementedError

    async def ause(self, adapter: Any, text: str) -> Any:
        """The same, for asyncio."""
        raise NotImplementedError

    def answered(self, gem: Gem) -> Any:
        """What `blocking` may return in its stead."""
        raise NotImplementedError

    # -- making one ----------------------------------------------------------------------------

    def test_it_is_what_llama_index_expects(self) -> None:
        assert self.base in self.adapter.__mro__
        assert self.adapter.class_name() == self.adapter.__name__

    def test_it_is_made_without_loading_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gem_rag, "load", _never)
        assert self.adapter("gem-tiny").model_name == "gem-tiny"
        assert self.adapter(**self.settings).to_dict()

    def test_a_name_and_a_gem_are_the_same_weights(self, gem: Gem) -> None:
        assert self.adapter("gem-tiny").gem is gem
        assert self.adapter(gem).gem is self.adapter(model=gem).gem is gem
        assert self.adapter(model_name="gem-tiny").gem is gem
        assert self.adapter(gem).model_name == "gem-tiny"

    def test_a_folder_is_a_model(self, chat_folder: Path) -> None:
        adapter = self.adapter(chat_folder, model_kwargs={"overlong": "error"})
        assert adapter.gem.name == adapter.model_name == str(chat_folder)
        assert adapter.gem.overlong == "error"

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

    def test_a_gem_stays_its_owners(self) -> None:
        with gem_rag.load("gem-tiny", overlong="windows") as mine:
            adapter = self.adapter(mine, model_kwargs={"overlong": "windows"})
            self.use(adapter, TEXTS[0])
            copy = pickle.loads(pickle.dumps(adapter))
            assert copy.gem is mine  # loaded by the same name and options
            copy.gem.close()
        with pytest.raises(GemError, match="closed"):
            self.use(adapter, TEXTS[0])

    # -- keeping and sending one ---------------------------------------------------------------

    def test_to_dict_and_back(self, gem: Gem) -> None:
        adapter = self.adapter("gem-tiny", **self.settings)
        state = json.loads(json.dumps(adapter.to_dict()))
        assert state["class_name"] == self.adapter.__name__
        assert {**state, **self.settings, "model_name": "gem-tiny"} == state
        assert self.adapter.from_dict(state).to_dict() == adapter.to_dict()
        assert self.adapter.from_dict(self.adapter(gem).to_dict()).gem is gem

    def test_pickled_it_is_light_and_works(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        adapter = self.adapter("gem-tiny", **self.settings)
        wanted = self.use(adapter, TEXTS[0])
        with caplog.at_level(logging.WARNING):
            data = pickle.dumps(adapter)
        assert len(data) < 10_000
        assert not caplog.records
        assert adapter.gem  # still there
        with monkeypatch.context() as patched:
            patched.setattr(gem_rag, "load", _never)
            copy = pickle.loads(data)
        assert copy.to_dict() == adapter.to_dict()
        assert self.use(copy, TEXTS[0]) == pytest.approx(wanted, abs=1e-5)

    # -- using one -----------------------------------------------------------------------------

    async def test_callbacks_hear_of_it(self) -> None:
        heard = LlamaDebugHandler(print_trace_on_end=False)
        adapter = self.adapter("gem-tiny", callback_manager=CallbackManager([heard]))
        self.use(adapter, TEXTS[0])
        await self.ause(adapter, TEXTS[0])
        pairs = heard.get_event_pairs(self.event)
        assert [len(pair) for pair in pairs] == [2, 2]
        assert all("exception" not in (end.payload or {}) for _, end in pairs)

    async def test_many_at_once_get_what_each_gets_alone(self) -> None:
        adapter = self.adapter("gem-tiny")
        wanted = [self.use(adapter, text) for text in TEXTS]
        found = await asyncio.gather(*(self.ause(adapter, text) for text in TEXTS))
        assert found == [pytest.approx(one, abs=1e-5) for one in wanted]
        with ThreadPoolExecutor(len(TEXTS)) as pool:
            fresh = self.adapter("gem-tiny")
            found = list(pool.map(lambda text: self.use(fresh, text), TEXTS))
        assert found == [pytest.approx(one, abs=1e-5) for one in wanted]

    async def test_many_wait_together(self, gem: Gem, monkeypatch: pytest.MonkeyPatch) -> None:
        """All calls have reached the model before the first has its answer."""
        everyone = threading.Barrier(AT_ONCE)

        def wait(*args: Any, **kwargs: Any) -> Any:
            everyone.wait(timeout=60)
            return self.answered(gem)

        monkeypatch.setattr(gem, self.blocking, wait)
        adapter = self.adapter(gem)
        await asyncio.gather(*(self.ause(adapter, "text") for _ in range(AT_ONCE)))

    async def test_the_loop_goes_on(self, gem: Gem, monkeypatch: pytest.MonkeyPatch) -> None:
        """The model waits for something that the event loop does afterwards."""
        begun, go_on = threading.Event(), threading.Event()

        def wait(*args: Any, **kwargs: Any) -> Any:
            begun.set()
            assert go_on.wait(timeout=60)
            return self.answered(gem)

        monkeypatch.setattr(gem, self.blocking, wait)
        task = asyncio.create_task(self.ause(self.adapter(gem), "text"))
        while not begun.is_set() and not task.done():
            await asyncio.sleep(0.001)
        assert not task.done()
        go_on.set()
        await task


def _never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("weights were loaded")
