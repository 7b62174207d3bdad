"""vLLM's own prefix cache is hit by prompts that begin alike, and a KV connector refills it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gem_rag
from gem_rag import Document, GemError, Index
from gem_rag.model import Gem

SMALL: dict[str, Any] = {
    "dtype": "float32", "kv_cache_memory_bytes": 64 << 20, "in_process": True,
    "enforce_eager": True, "max_model_len": 512, "block_size": 32,
}  # fmt: skip
BLOCK = 32  # tokens, which vLLM's kernel for CPUs allows
PASSAGE = " ".join(f"append item {n} to the list." for n in range(18))
QUESTIONS = ("append items to a list", "which item is first in the list", "append items to a list")


def connector(folder: Path) -> dict[str, Any]:
    """vLLM's connector that runs on a CPU: files of keys and values."""
    return {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, plain_tiny: Gem) -> list[Any]:
    """Of an index on vLLM, one question after another."""
    folder = tmp_path_factory.mktemp("index")
    document = Document("lists", PASSAGE)
    Index.open(folder, plain_tiny).sync([document, Document("files", "Open a file, and read it.")])
    with gem_rag.load("gem-tiny", engine="vllm", **SMALL) as gem:
        index = Index.open(folder, gem)
        return [index.ask(question, 1, style="free", max_tokens=8) for question in QUESTIONS]


def test_an_answer_hits_the_prefix_cache_from_its_passages_second_question_on(
    answers: list[Any], plain_tiny: Gem
) -> None:
    """All whole blocks of the head and the passage; vLLM's own count."""
    assert [answer.hits[0].chunk.source for answer in answers] == ["lists"] * 3
    shared = len(plain_tiny.answer_prefix(answers[0].hits[0].chunk.passage))
    assert answers[0].usage["reused"] == 0
    for answer in answers[1:]:
        reused = answer.usage["reused"]
        assert reused % BLOCK == 0
        assert shared - BLOCK < reused < answer.usage["prompt"]
    assert answers[2].text == answers[0].text


def test_a_connector_brings_back_what_left_the_cache(tmp_path: Path) -> None:
    """Here, of an engine that was closed; embeddings are as without a connector."""
    prompts = [f"Context:\n[1] {PASSAGE}\n\nQuestion: {question}?" for question in QUESTIONS[:2]]
    found, vectors = [], []
    for _ in range(2):
        arguments = {**SMALL, "kv_transfer_config": connector(tmp_path)}
        with gem_rag.load("gem-tiny", engine="vllm", **arguments) as gem:
            vectors.append(gem.embed_documents([PASSAGE[:200]]))
            found += gem.generate(prompts[:1], max_tokens=6)
    first, second = found
    assert (first.tokens, first.reused_tokens) == (second.tokens, 0)
    assert second.reused_tokens == (second.prompt_tokens - 1) // BLOCK * BLOCK
    assert (vectors[0] == vectors[1]).all()


def test_vllm_keeps_no_prefill_of_ours(tmp_path: Path) -> None:
    from gem_rag.engines.vllm.vllm_engine import VllmEngine

    engine = object.__new__(VllmEngine)
    assert not engine.use_prefixes(tmp_path)
    with pytest.raises(GemError, match="'vllm' has a prefix cache of its own"):
        engine.keep_prefixes([], tmp_path, 1)
