"""`GemEmbedding` gives the model's own vectors, with its prompts, in its batches."""

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
from gem_rag.errors import InputError
from gem_rag.model import Gem

TEXTS = ["open a file", "sort a list in place", "raise an error", "a\n\nb  c\t", "x"]


class TestContract(Contract):
    adapter = GemEmbedding
    base = BaseEmbedding
    blocking = "embed_documents"
    event = CBEventType.EMBEDDING
    settings = {  # noqa: RUF012
        "engine": "transformers",
        "model_kwargs": {"overlong": "windows"},
        "embed_batch_size": 7,
        "num_workers": 2,
    }

    def use(self, adapter: Any, text: str) -> Any:
        return adapter.get_text_embedding(text)

    async def ause(self, adapter: Any, text: str) -> Any:
        return await adapter.aget_text_embedding(text)

    def answered(self, gem: Gem) -> Any:
        return np.zeros((1, gem.dim), dtype=np.float32)


@pytest.fixture
def embedding(chat_folder: Path) -> GemEmbedding:
    """Of a model with a prompt for queries and another for documents."""
    return GemEmbedding(chat_folder)


def recorded(gem: Gem, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The lists of texts that the model is given from now on."""
    calls: list[list[str]] = []
    embed = gem.embed_documents

    def record(texts: list[str], **kwargs: Any) -> Any:
        calls.append(list(texts))
        return embed(texts, **kwargs)

    monkeypatch.setattr(gem, "embed_documents", record)
    return calls


# -- vectors -----------------------------------------------------------------------------------


async def test_queries_and_texts_have_prompts_of_their_own(embedding: GemEmbedding) -> None:
    gem = embedding.gem
    query, text = gem.embed_queries(["open a file"])[0], gem.embed_documents(["open a file"])[0]
    assert not np.allclose(query, text, atol=1e-3)
    for found in (
        embedding.get_query_embedding("open a file"),
        await embedding.aget_query_embedding("open a file"),
        embedding.get_agg_embedding_from_queries(["open a file"]),
    ):
        assert np.allclose(found, query, atol=1e-5)
    for found in (
        embedding.get_text_embedding("open a file"),
        await embedding.aget_text_embedding("open a file"),
        *embedding.get_text_embedding_batch(["open a file"]),
        *await embedding.aget_text_embedding_batch(["open a file"]),
    ):
        assert np.allclose(found, text, atol=1e-5)


def test_vectors_are_lists_of_floats_of_length_one(embedding: GemEmbedding) -> None:
    vector = embedding.get_query_embedding("open a file")
    assert isinstance(vector, list)
    assert {type(value) for value in vector} == {float}
    assert len(vector) == embedding.gem.dim
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


async def test_a_batch_is_one_call_and_its_texts_are_untouched(
    gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(gem, monkeypatch)
    found = GemEmbedding(gem).get_text_embedding_batch(TEXTS)
    assert calls == [TEXTS]
    again = await GemEmbedding(gem).aget_text_embedding_batch(TEXTS)
    assert calls == [TEXTS, TEXTS]
    assert np.allclose(found, again, atol=1e-5)
    calls.clear()
    small = GemEmbedding(gem, embed_batch_size=2).get_text_embedding_batch(TEXTS)
    assert calls == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]
    assert np.allclose(found, small, atol=1e-5)


async def test_progress_is_shown(gem: Gem, capsys: pytest.CaptureFixture[str]) -> None:
    GemEmbedding(gem).get_text_embedding_batch(TEXTS, show_progress=True)
    assert "Generating embeddings" in capsys.readouterr().err
    await GemEmbedding(gem).aget_text_embedding_batch(TEXTS, show_progress=True)
    assert "Generating embeddings" in capsys.readouterr().err


def test_an_empty_text_is_named(gem: Gem) -> None:
    with pytest.raises(InputError, match="text 1 is empty"):
        GemEmbedding(gem).get_text_embedding_batch(["open", " "])


async def test_nodes_are_embedded_in_a_pipeline(gem: Gem) -> None:
    nodes = [TextNode(text=text) for text in TEXTS]
    pipeline = IngestionPipeline(transformations=[GemEmbedding(gem)], disable_cache=True)
    found = [node.embedding for node in pipeline.run(nodes=nodes)]
    assert np.allclose(found, gem.embed_documents(TEXTS), atol=1e-5)
    found = [node.embedding for node in await pipeline.arun(nodes=nodes)]
    assert np.allclose(found, gem.embed_documents(TEXTS), atol=1e-5)


# -- the cache of LlamaIndex -------------------------------------------------------------------


async def test_a_cache_saves_embedding_twice(gem: Gem, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(gem, monkeypatch)
    embedding = GemEmbedding(gem, embeddings_cache=SimpleKVStore())
    found = embedding.get_text_embedding_batch(TEXTS)
    assert embedding.get_text_embedding_batch(TEXTS) == found
    assert await embedding.aget_query_embedding(TEXTS[0]) == found[0]
    assert calls == [TEXTS]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_cache_is_refused_where_queries_and_texts_differ(
    chat_folder: Path, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    model = gem_rag.load(chat_folder) if loaded else chat_folder
    with pytest.raises(InputError, match=r"'query: '.*'passage: '.*leave embeddings_cache out"):
        GemEmbedding(model, embeddings_cache=SimpleKVStore())
