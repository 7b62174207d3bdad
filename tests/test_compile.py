"""Compiled texts and recorded queries give the vectors of the plain passes, and nothing else
changes."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import close_to, random_ids, vectors_of
from torch import Tensor

import gem_rag
from gem_rag.core.layout import Row
from gem_rag.engines import batch_embedder, query_graphs
from gem_rag.engines.query_graphs import QueryGraphs
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem

LENGTHS = (40, 33, 40, 7, 1, 25, 40, 39)


def rows_of(*lengths: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    return [Row.whole(random_ids(length, generator)) for length in lengths]


@pytest.fixture(autouse=True)
def _no_pass_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_embedder, "_ONE_PASS_TOKENS", 0)


# -- torch.compile -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(trained_folder: Path) -> Iterator[Gem]:
    """As `gem`, with adapters on every linear layer, compiled."""
    with gem_rag.load(trained_folder, compile=True) as loaded:
        yield loaded


def test_compiled_texts_give_the_same_vectors(compiled: Gem, gem: Gem) -> None:
    assert compiled._engine.encoder.compiled
    for lengths in (LENGTHS, (12,), (3, 2, 90)):
        rows = rows_of(*lengths)
        assert close_to(compiled._engine.embed(rows), vectors_of(gem, *rows))


def test_generation_is_not_compiled(compiled: Gem, gem: Gem) -> None:
    ids = torch.tensor([rows_of(30)[0].text])
    compiled._engine.embed(rows_of(*LENGTHS))
    with compiled.language_model() as ours, gem.language_model() as plain, torch.inference_mode():
        assert torch.equal(ours(ids).logits, plain(ids).logits)


def test_closing_frees_a_compiled_model(trained_folder: Path) -> None:
    gem = gem_rag.load(trained_folder, compile=True, batch_tokens=512)
    weight = weakref.ref(gem._engine.encoder.base.get_input_embeddings().weight)
    gem.embed_documents(["a text", "another text"])
    gem.close()
    del gem
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("architecture", ["gpt_neox", "qwen3"])
def test_attention_alone_breaks_a_layer_in_pieces(
    architecture: str, gem_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hooks of adapters would do so at each linear layer, fourteen times."""
    pieces = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            pieces.append(graph)
            return graph(*args)

        return run

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **how: compile(run, backend=backend, **how))
    with gem_rag.load(gem_folder(architecture), compile=True) as gem:
        rows = rows_of(*LENGTHS)
        found = gem._engine.embed(rows)
        pieces.clear()
        gem._engine.embed(rows_of(40, 40, 40))
        layers = gem._engine.encoder.model.config.num_hidden_layers
        assert layers < len(pieces) <= 5 * layers + 4
        gem._engine.encoder.compile_texts(False)
        assert close_to(found, gem._engine.embed(rows))


def fails(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no compiler here\nand a long story")


def test_a_model_that_cannot_be_compiled_says_why(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **how: fails)
    with pytest.raises(GemError, match=r"compiled here \(no compiler here\): load it with compile"):
        gem_rag.load(trained_folder, compile=True, batch_tokens=99)


def test_an_unknown_setting_is_refused(trained_folder: Path) -> None:
    with pytest.raises(InputError, match="compile must be one of True, False, auto, not 'yes'"):
        gem_rag.load(trained_folder, compile="yes")


@pytest.fixture
def patient(trained_folder: Path) -> Iterator[Gem]:
    """Compiles once it has embedded for a while."""
    with gem_rag.load(trained_folder, batch_tokens=77) as gem:
        assert gem._engine._embedder._seconds_left == float("inf")  # not on a CPU
        gem._engine._embedder._seconds_left = batch_embedder._COMPILE_AFTER_SECONDS
        yield gem


def test_a_long_time_of_embedding_is_worth_compiling(
    patient: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 25))
    monkeypatch.setattr(batch_embedder.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(torch, "compile", lambda run, **how: run)
    seen = []
    for _ in range(4):
        patient._engine.embed(rows_of(*LENGTHS))
        seen.append(patient._engine.encoder.compiled)
    assert seen == [False, False, True, True]


def test_a_failure_to_compile_is_said_once_and_hurts_nothing(
    patient: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **how: fails)
    patient._engine._embedder._seconds_left = 0
    rows = rows_of(*LENGTHS)
    with pytest.warns(UserWarning, match=r"uncompiled \(no compiler here\)"):
        first = patient._engine.embed(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close_to(patient._engine.embed(rows), first)


# -- CUDA graphs -------------------------------------------------------------------------------


@pytest.fixture
def recordings(gem: Gem, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Stands in for CUDA's recording: what is launched again runs again, into the same tensor."""
    outputs: list[Tensor] = []

    def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        outputs.append(output := run().clone())
        return lambda: output.copy_(run())

    monkeypatch.setattr(query_graphs, "record", record)
    monkeypatch.setattr(gem._engine._embedder, "_graphs", QueryGraphs(gem._engine.encoder))
    return outputs


def test_recorded_queries_have_the_same_vectors(gem: Gem, recordings: list[Tensor]) -> None:
    for row in rows_of(*range(1, 40), *range(40, 0, -3), 100):
        graphs, gem._engine._embedder._graphs = gem._engine._embedder._graphs, None
        plain = gem._engine.embed([row])
        gem._engine._embedder._graphs = graphs
        before = len(recordings)
        assert close_to(gem._engine.embed([row]), plain)
        assert len(recordings) >= before
    assert len(recordings) == 4  # for 16, 32, 64 and 128 tokens


def test_a_vector_outlives_the_next_query(gem: Gem, recordings: list[Tensor]) -> None:
    rows = rows_of(5, 6)
    both = list(gem._engine.embed_batches([[row] for row in rows]))
    for vector, row in zip(both, rows, strict=True):
        assert close_to(vector, gem._engine.embed([row]))


@pytest.mark.parametrize(
    "row", [Row.whole([5] * 257), Row([5] * 9, ((0, 4),)), Row([5] * 9, ((0, 9), (0, 4)))]
)
def test_other_rows_are_not_recorded(gem: Gem, recordings: list[Tensor], row: Row) -> None:
    assert len(gem._engine.embed([row])) == len(row.spans)
    assert not recordings


def test_what_cannot_be_recorded_runs_as_ever(
    gem: Gem, recordings: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_graphs, "record", fails)
    [row] = rows_of(9)
    with pytest.warns(UserWarning, match=r"without CUDA graphs \(no compiler here\)"):
        found = gem._engine.embed([row])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close_to(gem._engine.embed([row]), found)
