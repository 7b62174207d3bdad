"""`load` shares one instance of a model, and refuses what it cannot load."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import edit_json

import gem_rag
from gem_rag.engines.transformers_engine import TransformersEngine
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem


@pytest.fixture
def constructions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every engine that is made."""
    made: list[int] = []
    original = TransformersEngine.__init__

    @functools.wraps(original)
    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(1)
        original(self, *args, **kwargs)

    monkeypatch.setattr(TransformersEngine, "__init__", counted)
    return made


def test_importing_gem_rag_imports_nothing_heavy() -> None:
    code = "import gem_rag, sys; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_public_names_can_be_imported() -> None:
    for name in gem_rag.__all__:
        assert getattr(gem_rag, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Jam'"):
        _ = gem_rag.Jam


def test_the_same_identity_gives_the_same_object(folder: Path, constructions: list[int]) -> None:
    gems = [
        gem_rag.load(folder),
        gem_rag.load(str(folder)),
        gem_rag.load(folder / ".." / folder.name),
        gem_rag.load(folder, "transformers"),
        gem_rag.load(folder, k=2),
    ]
    assert all(gem is gems[0] for gem in gems)
    assert len(constructions) == 1


def test_other_options_give_another_object(folder: Path) -> None:
    gems = [
        gem_rag.load(folder),
        gem_rag.load(folder, truncation="error"),
        gem_rag.load(folder, batch_tokens=64),
        gem_rag.load(folder, attention="dense"),
    ]
    assert len({id(gem) for gem in gems}) == len(gems)


def test_a_folder_that_has_changed_is_loaded_anew(folder: Path) -> None:
    before = gem_rag.load(folder)
    edit_json(folder / "gem_config.json", prompts={"query": "another: ", "document": ""})
    assert gem_rag.load(folder) is not before


def test_threads_that_load_at_once_share_one_engine(folder: Path, constructions: list[int]) -> None:
    barrier = threading.Barrier(16)

    def load(_: int) -> Gem:
        barrier.wait(timeout=30)
        return gem_rag.load(folder)

    with ThreadPoolExecutor(16) as pool:
        gems = list(pool.map(load, range(16)))
    assert all(gem is gems[0] for gem in gems)
    assert len(constructions) == 1


def test_the_last_close_frees_the_model(folder: Path, constructions: list[int]) -> None:
    first, second = gem_rag.load(folder), gem_rag.load(folder)
    first.close()
    assert len(second.embed_queries(["still there"])) == 1
    second.close()
    for use in (
        lambda: first.embed_queries(["gone"]),
        lambda: first.embed_chunks("gone", [(0, 1)]),
        lambda: first.generate(["gone"]),
        lambda: first.stream("gone"),
        lambda: gem_rag.load(first),
    ):
        with pytest.raises(GemError, match="closed: load the model again"):
            use()
    assert len(gem_rag.load(folder).embed_queries(["back"])) == 1
    assert len(constructions) == 2


def test_close_more_often_than_load_is_harmless(folder: Path) -> None:
    gem = gem_rag.load(folder)
    gem.close()
    gem.close()
    with gem_rag.load(folder) as again:
        assert again is not gem
        assert len(again.embed_queries(["back"])) == 1


def test_a_gem_can_be_loaded(folder: Path) -> None:
    gem = gem_rag.load(folder)
    with gem_rag.load(gem) as same:
        assert same is gem
    assert len(gem.embed_queries(["the first reference is still held"])) == 1


def test_an_engine_outlives_a_failed_load(folder: Path) -> None:
    with pytest.raises(InputError):
        gem_rag.load(folder, truncation="never")
    assert len(gem_rag.load(folder).embed_queries(["fine"])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "transformer"}, "no engine 'transformer'.*did you mean 'transformers'"),
        ({"batch_token": 5}, "no option 'batch_token'.*did you mean 'batch_tokens'"),
        ({"devise": "cpu"}, "no option 'devise'.*did you mean 'device'"),
        (
            {"truncation": "never"},
            "truncation must be one of truncate, windows, error, not 'never'",
        ),
        ({"attention": "fleks"}, "attention must be one of .*, not 'fleks'"),
    ],
)
def test_a_wrong_argument_is_refused(
    arguments: dict[str, Any], message: str, trained_folder: Path
) -> None:
    with pytest.raises(InputError, match=message):
        gem_rag.load(trained_folder, **arguments)


def test_a_model_that_is_not_gem_trained_is_loaded_with_a_warning(plain_folder: Any) -> None:
    with pytest.warns(UserWarning, match="has not been GEM-trained"):
        gem = gem_rag.load(plain_folder("mistral"), k=3)
    assert gem.config.k == 3
    assert gem.embed_queries(["a text"]).shape == (1, gem.dim)


def test_a_gem_cannot_be_pickled_or_copied(gem: Gem) -> None:
    with pytest.raises(TypeError, match="pass the model's name instead"):
        pickle.dumps(gem)
    with pytest.raises(TypeError, match="pass the model's name instead"):
        copy.deepcopy(gem)


def test_options_beside_a_loaded_gem_are_refused(gem: Gem) -> None:
    with pytest.raises(InputError, match="a Gem is loaded already"):
        gem_rag.load(gem, dtype="bfloat16")
