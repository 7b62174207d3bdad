"""The same text gives the same vector on vLLM as on transformers, however vLLM is run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, SHAPE, SMALL
from families import build_family

import gem_rag
from gem_rag.core.layout import Row
from gem_rag.core.tensors import read_weight
from gem_rag.errors import GemError
from gem_rag.model import Gem

MODES = tuple(product((1, 4), ("in process", "multiprocess"), ("eager", "compiled")))
# Llama and gem-tiny meet every pair of values, the others one combination; the rest of the product
# takes several times as long (pytest -m exhaustive).
ONE = {(4, "in process", "compiled")}
PAIRS = {
    *ONE,
    (1, "in process", "eager"),
    (1, "multiprocess", "compiled"),
    (4, "multiprocess", "eager"),
}


def runs() -> list[object]:
    found = []
    for architecture in (*ARCHITECTURES, "gem-tiny"):
        usual = PAIRS if architecture in ("llama", "gem-tiny") else ONE
        for mode in MODES:
            if architecture == "gem-tiny" and mode[0] != 1:
                continue  # it has one special token
            name = " ".join(map(str, (architecture, *mode)))
            marks = [] if mode in usual else [pytest.mark.exhaustive]
            found.append(pytest.param(architecture, *mode, id=name, marks=marks))
    return found


def random_texts(gem: Gem, count: int = 64) -> list[str]:
    """Texts of mixed length, made of whole tokens."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, min(gem.max_length - 8, 120), (count,), generator=random).tolist()
    return [gem._tokenizer.decode(helpers.random_ids(n, random)).strip() or "x" for n in lengths]


def nearest(found: np.ndarray, wanted: np.ndarray) -> float:
    """The least cosine of two lists of unit vectors."""
    return float((found * wanted).sum(axis=1).min())


def check_same_vectors(gem: Gem, reference: Gem) -> None:
    texts = random_texts(reference)
    wanted = reference.embed_documents(texts)
    assert nearest(gem.embed_documents(texts), wanted) >= 0.9999
    one_by_one = np.concatenate([gem.embed_documents([text]) for text in texts[:8]])
    assert nearest(one_by_one, wanted[:8]) >= 0.9999
    assert nearest(gem.embed_queries(texts[:4]), reference.embed_queries(texts[:4])) >= 0.9999
    # Now vLLM has generated from the same texts, its prefix cache is warm.
    gem.generate(texts[:8], max_tokens=2)
    assert nearest(gem.embed_documents(texts), wanted) >= 0.9999


@pytest.mark.parametrize(("architecture", "k", "process", "graph"), runs())
def test_vectors_are_those_of_the_transformers_engine(
    architecture: str,
    k: int,
    process: str,
    graph: str,
    served_folder: Callable[..., Path],
    request: pytest.FixtureRequest,
) -> None:
    if (architecture, process, graph) == ("gem-tiny", "multiprocess", "compiled"):
        check_same_vectors(request.getfixturevalue("tiny"), request.getfixturevalue("plain_tiny"))
        return
    folder = "gem-tiny" if architecture == "gem-tiny" else served_folder(architecture, k)
    how = {"in_process": process == "in process", "enforce_eager": graph == "eager"}
    with (
        gem_rag.load(folder, engine="vllm", **SMALL, **how) as gem,
        gem_rag.load(folder) as reference,
    ):
        check_same_vectors(gem, reference)


def test_tensor_parallel_workers_give_the_same_vectors(
    served_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused and sharded layers, with adapters on all of them."""
    # Without it, vLLM's CPU build wants a NUMA node for each worker.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    folder = served_folder("llama", 4)
    with (
        gem_rag.load(
            folder, engine="vllm", tensor_parallel_size=2, enforce_eager=True, **SMALL
        ) as gem,
        gem_rag.load(folder) as reference,
    ):
        check_same_vectors(gem, reference)


@pytest.fixture(params=["gpt2", "glm4"])
def fused_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint whose layers are fused, as vLLM's are, and have an adapter as a whole."""
    build_family(request.param, **SHAPE).save_pretrained(tmp_path / "base")
    helpers.build_tokenizer(bos=True).save_pretrained(tmp_path / "base")
    return helpers.save_gem(tmp_path / "gem", tmp_path / "base", k=1)


def test_layers_that_are_fused_in_the_checkpoint_have_adapters(fused_folder: Path) -> None:
    how = {"in_process": True, "enforce_eager": True}
    with (
        gem_rag.load(fused_folder, engine="vllm", **SMALL, **how) as gem,
        gem_rag.load(fused_folder) as reference,
    ):
        check_same_vectors(gem, reference)


def test_layers_that_vllm_reorders_are_refused(
    fused_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does to heads of some models, whose adapters would act on other outputs."""
    monkeypatch.setattr(
        "gem_rag.engines.vllm.sharded_adapters.read_weight",
        lambda *args: read_weight(*args).flip((0, 1)),  # type: ignore[union-attr]
    )
    with pytest.raises(GemError, match="so its adapter cannot act there"):
        gem_rag.load(fused_folder, engine="vllm", in_process=True, enforce_eager=True, **SMALL)


def test_spans_inside_a_text_are_read_in_their_context(tiny: Gem, plain_tiny: Gem) -> None:
    document = "A list keeps its order. A set does not, and holds no element twice. " * 3
    spans = [(0, 23), (24, 68), (30, 120)]
    wanted = plain_tiny.embed_chunks(document, spans)
    assert nearest(tiny.embed_chunks(document, spans), wanted) >= 0.9999


def test_a_batch_larger_than_a_step_of_vllm_is_read_in_steps(
    served_folder: Callable[..., Path],
) -> None:
    folder = served_folder("llama", 4)
    rows = [Row.whole(helpers.random_ids(n, torch.Generator().manual_seed(n))) for n in
            (100, 90, 80, 70, 60, 50, 40, 30, 20, 10, 5, 1)]  # fmt: skip
    with (
        gem_rag.load(
            folder, engine="vllm", in_process=True, enforce_eager=True, max_num_batched_tokens=128,
            max_model_len=128, max_num_seqs=8, **SMALL,
        ) as gem,
        gem_rag.load(folder) as reference,
    ):  # fmt: skip
        assert gem._engine.batch_tokens > 128
        wanted = np.concatenate([reference._engine.embed([row]) for row in rows])
        assert nearest(gem._engine.embed(rows), wanted) >= 0.9999


@pytest.mark.filterwarnings("ignore:.*has not been GEM-trained")
def test_an_untrained_model_starts_from_the_same_rows(
    runnable_folder: Callable[..., Path],
) -> None:
    folder, how = runnable_folder("llama"), {"in_process": True, "enforce_eager": True}
    with (
        gem_rag.load(folder, engine="vllm", k=2, **how, **SMALL) as gem,
        gem_rag.load(folder, k=2) as reference,
    ):
        texts = random_texts(reference, 8)
        assert nearest(gem.embed_documents(texts), reference.embed_documents(texts)) >= 0.9999
