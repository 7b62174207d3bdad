"""Which model an adapter uses, when it is loaded, and what is serialized."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumps, loads
from langchain_gem import ChatGem, GemEmbeddings, GemLLM, GemRetriever
from pydantic import ValidationError
from standard import other_model

import gem_rag
from gem_rag import Gem, InputError, load

ADAPTERS = [ChatGem, GemLLM, GemEmbeddings]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_name_a_folder_and_a_gem(adapter: Any, gem: Gem) -> None:
    assert adapter().gem is adapter(model="gem-tiny").gem is adapter(model=gem).gem is gem
    assert adapter(model_name="gem-tiny").gem is gem
    assert adapter(model=Path(other_model())).gem.name == other_model()


def test_the_same_name_is_the_same_weights_in_every_adapter(tmp_path: Path) -> None:
    folder = other_model()
    adapters = [adapter(model=folder) for adapter in ADAPTERS]
    gem = GemRetriever(index=tmp_path / "index", model=folder).gem
    assert all(adapter.gem is gem for adapter in adapters)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_construction_loads_nothing(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(gem_rag, "load", lambda *args, **_: calls.append(args) or load())
    instance = adapter(model="gem-tiny")
    assert not calls
    assert instance.gem is instance.gem
    assert calls == [("gem-tiny", "auto")]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_options_reach_load(adapter: Any) -> None:
    gem = adapter(model_kwargs={"truncation": "windows"}).gem
    assert gem.truncation == "windows"
    with pytest.raises(InputError, match="no option 'devise'"):
        _ = adapter(model_kwargs={"devise": "cpu"}).gem


def test_a_cache_folder_reaches_load(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr(gem_rag, "load", lambda *_, **kwargs: options.update(kwargs))
    _ = GemEmbeddings(cache_folder="models", model_kwargs={"device": "cpu"}).gem
    assert options == {"cache_folder": "models", "device": "cpu"}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_wrong_fields_are_refused(adapter: Any) -> None:
    with pytest.raises(ValidationError, match="modle"):
        adapter(modle="gem-tiny")
    with pytest.raises(ValidationError, match="engine"):
        adapter(engine="onnx")
    with pytest.raises(ValidationError, match="valid string"):
        adapter(model=3)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_unknown_model_is_refused_at_its_first_use(adapter: Any) -> None:
    instance = adapter(model="./no-such-folder")
    with pytest.raises(InputError, match="there is no model folder"):
        _ = instance.gem


def test_a_closed_gem_is_refused() -> None:
    with load(other_model(without_template=True)) as gem:
        chat = ChatGem(model=gem, max_tokens=2)
        assert chat.invoke("Hello")
    with pytest.raises(gem_rag.GemError, match="has been closed"):
        chat.invoke("Hello")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_pickles_and_deep_copies_hold_no_weights(adapter: Any, gem: Gem) -> None:
    instance = adapter(model=gem, model_kwargs={})
    assert instance.gem is gem
    pickled = pickle.dumps(instance)
    assert len(pickled) < 2000
    for copied in (pickle.loads(pickled), copy.deepcopy(instance), instance.model_copy()):
        assert copied == instance
        assert copied.gem is gem  # looked up by its name


@pytest.mark.parametrize("adapter", [ChatGem, GemLLM])
def test_serialization_keeps_the_settings(adapter: Any, gem: Gem) -> None:
    instance = adapter(model=gem, temperature=0.5, max_tokens=3, stop=["\n"])
    text = dumps(instance)
    assert len(text) < 500
    namespace = instance.get_lc_namespace()[:1]
    copied = loads(text, allowed_objects=[adapter], valid_namespaces=namespace)
    assert copied == instance


def test_a_retriever_serialises_too(tmp_path: Path) -> None:
    instance = GemRetriever(index=tmp_path / "index", k=2)
    copied = loads(
        dumps(instance), allowed_objects=[GemRetriever], valid_namespaces=["langchain_gem"]
    )
    assert copied == instance
    assert pickle.loads(pickle.dumps(instance)) == instance


def test_settings_may_be_left_to_each_call(gem: Gem) -> None:
    """Configurable fields make a new adapter for a call; it shares what the old one has loaded."""
    from langchain_core.runnables import ConfigurableField

    chat = ChatGem(model=gem).configurable_fields(max_tokens=ConfigurableField(id="length"))
    answer = chat.invoke("Hello", config={"configurable": {"length": 2}})
    assert answer.usage_metadata["output_tokens"] == 2
