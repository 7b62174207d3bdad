"""`GemEmbedding` returns the vectors of the model, with its prompts and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import Contract
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CBEventType
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.gem import GemEmbedding

import gem_rag
from gem_rag import Gem, InputError

TEXTS = ["open a file", "sort a list in place", "raise an error", "a\n\nb  c\t", "x"]


class TestContract(Contract):
    adapter = GemEmbedding
    base = BaseEmbedding
    blocking = "embed_documents"
    event = CBEventType.EMBEDDING
    settings = {  # noqa: RUF012
        "engine": "transformers",
        "model_kwargs": {"truncation": "windows"},
        "embed_batch_size": 7,
        "num_workers": 2,
    }

    def use(self, adapter: Any, text: str) -> Any:
        return adapter.get_text_embedding(text)

    async def ause(self, adapter: Any, text: str) -> Any:
        return await adapter.aget_text_embedding(text)

    def fake_result(self, gem: Gem) -> Any:
        return np.zeros((1, gem.dim), dtype=np.float32)


@pytest.fixture
def embedding(chat_folder: Path) -> GemEmbedding:
    """An embedding model with different prompts for queries and documents."""
    return GemEmbedding(chat_folder)


def record_calls(gem: Gem, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the lists of texts that the model embeds."""
    calls: list[list[str]] = []
    embed = gem.embed_documents

    def record(texts: list[str], **kwargs: Any) -> Any:
        calls.append(list(texts))
        return embed(texts, **kwargs)

    monkeypatch.setattr(gem, "embed_documents", record)
    return calls


# -- vectors -----------------------------------------------------------------------------------


async def test_queries_and_texts_have_different_prompts(embedding: GemEmbedding) -> None:
    gem = embedding.gem
    query, text = gem.embed_queries(["open a file"])[0], gem.embed_documents(["open a file"])[0]
    assert not np.allclose(query, text, atol=1e-3)
    for vector in (
        embedding.get_query_embedding("open a file"),
        await embedding.aget_query_embedding("open a file"),
        embedding.get_agg_embedding_from_queries(["open a file"]),
    ):
        assert np.allclose(vector, query, atol=1e-5)
    for vector in (
        embedding.get_text_embedding("open a file"),
        await embedding.aget_text_embedding("open a file"),
        *embedding.get_text_embedding_batch(["open a file"]),
        *await embedding.aget_text_embedding_batch(["open a file"]),
    ):
        assert np.allclose(vector, text, atol=1e-5)


def test_vectors_are_lists_of_floats_of_length_one(embedding: GemEmbedding) -> None:
    vector = embedding.get_query_embedding("open a file")
    assert isinstance(vector, list)
    assert {type(value) for value in vector} == {float}
    assert len(vector) == embedding.gem.dim
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


async def test_a_batch_is_one_call_with_unaltered_texts(
    gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record_calls(gem, monkeypatch)
    vectors = GemEmbedding(gem).get_text_embedding_batch(TEXTS)
    assert calls == [TEXTS]
    async_vectors = await GemEmbedding(gem).aget_text_embedding_batch(TEXTS)
    assert calls == [TEXTS, TEXTS]
    assert np.allclose(vectors, async_vectors, atol=1e-5)
    calls.clear()
    small_batches = GemEmbedding(gem, embed_batch_size=2).get_text_embedding_batch(TEXTS)
    assert calls == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]
    assert np.allclose(vectors, small_batches, atol=1e-5)


async def test_progress_is_shown(gem: Gem, capsys: pytest.CaptureFixture[str]) -> None:
    GemEmbedding(gem).get_text_embedding_batch(TEXTS, show_progress=True)
    assert "Generating embeddings" in capsys.readouterr().err
    await GemEmbedding(gem).aget_text_embedding_batch(TEXTS, show_progress=True)
    assert "Generating embeddings" in capsys.readouterr().err


def test_a_blank_text_does_not_fail_its_batch(gem: Gem) -> None:
    model = GemEmbedding(gem)
    opened, blank, empty = model.get_text_embedding_batch(["open", " \n", ""])
    assert np.allclose(opened, model.get_text_embedding("open"), atol=1e-5)
    assert blank == empty
    assert abs(np.linalg.norm(blank) - 1) < 1e-5
    assert np.allclose(model.get_query_embedding("\t"), blank, atol=1e-5)


async def test_nodes_are_embedded_in_a_pipeline(gem: Gem) -> None:
    nodes = [TextNode(text=text) for text in TEXTS]
    pipeline = IngestionPipeline(transformations=[GemEmbedding(gem)], disable_cache=True)
    vectors = [node.embedding for node in pipeline.run(nodes=nodes)]
    assert np.allclose(vectors, gem.embed_documents(TEXTS), atol=1e-5)
    vectors = [node.embedding for node in await pipeline.arun(nodes=nodes)]
    assert np.allclose(vectors, gem.embed_documents(TEXTS), atol=1e-5)


# -- the cache of LlamaIndex -------------------------------------------------------------------


async def test_a_cache_saves_embedding_a_text_twice(
    gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record_calls(gem, monkeypatch)
    embedding = GemEmbedding(gem, embeddings_cache=SimpleKVStore())
    vectors = embedding.get_text_embedding_batch(TEXTS)
    assert embedding.get_text_embedding_batch(TEXTS) == vectors
    assert await embedding.aget_query_embedding(TEXTS[0]) == vectors[0]
    assert calls == [TEXTS]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_cache_is_refused_if_queries_and_texts_differ(
    chat_folder: Path, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    model = gem_rag.load(chat_folder) if loaded else chat_folder
    with pytest.raises(InputError, match=r"'query: '.*'passage: '.*leave embeddings_cache out"):
        GemEmbedding(model, embeddings_cache=SimpleKVStore())
