"""Adapter-only checkpoints, GGUF files and long seeded prompts on vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from helpers import close_to

import gem_rag
from gem_rag.core.base_model import BaseModel
from gem_rag.core.checkpoint import open_checkpoint, save_adapter
from gem_rag.model import Gem

pytest.importorskip("vllm")

from vllm import EngineArgs

from gem_rag.server import vllm_plugin as plugin

TEXTS = ["a quick fox", "an index of vectors", "x"]


@pytest.fixture(scope="module")
def adapter(
    served_folder: Any, runnable_folder: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A checkpoint without its base, and the whole one."""
    root = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEM_RAG_CACHE", str(root / "cache"))
        whole = open_checkpoint(served_folder("llama"))
        special = whole.adapter()
        assert special is not None
        base = open_checkpoint(runnable_folder("llama"))
        save_adapter(root / "adapter", base, whole.config, special)
        yield root / "adapter", whole.path


@pytest.fixture(scope="module")
def gem(adapter: tuple[Path, Path]) -> Any:
    settings = {**SMALL, "max_num_batched_tokens": 32, "enforce_eager": True}
    with gem_rag.load(adapter[0], "vllm", in_process=True, **settings) as loaded:
        yield loaded


def test_an_adapter_beside_its_base(gem: Gem, adapter: tuple[Path, Path]) -> None:
    with gem_rag.load(adapter[1]) as whole:
        assert gem.fingerprint == whole.fingerprint
        assert close_to(gem.embed_documents(TEXTS), whole.embed_documents(TEXTS), 1e-4)


def test_seeded_prompts_are_read_in_parts(gem: Gem) -> None:
    """With 32 tokens a step, the last ones in the middle of other requests."""
    prompts = [[7 + n] * length for n, length in enumerate((100, 5, 70, 33))]
    settings = {"max_tokens": 8, "temperature": 1.0, "seed": 3}
    together = [one.tokens for one in gem.generate(prompts, **settings)]
    assert [one.tokens for one in gem.generate(prompts, **settings)] == together
    alone = gem.generate(prompts[:1], **settings)[0].tokens
    assert alone == together[0]
    assert gem.generate(prompts[:1], **{**settings, "seed": 4})[0].tokens != alone


def test_vllm_serve_finds_the_base(
    adapter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setenv("VLLM_PLUGINS", "gem_rag")
    monkeypatch.setattr(EngineArgs, "create_engine_config", asked.append)
    plugin.register()
    for model in map(str, adapter):
        EngineArgs(model=model).create_engine_config()
    alone, whole = asked
    assert (Path(alone.model) / "model.safetensors").is_file()
    assert alone.served_model_name == str(adapter[0])
    assert BaseModel.read(Path(alone.model)) is None
    assert whole.model == str(adapter[1])
