"""`GemEmbedding` on vLLM returns the vectors of the transformers engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.gem import GemEmbedding, GemVectorStore
from on_vllm import SMALL

from gem_rag import Gem

TEXTS = ["open a file", "sort a list in place", "raise an error", "a\n\nb  c\t", "x"]


def test_a_name_selects_the_shared_engine(vllm_gem: Gem) -> None:
    assert GemEmbedding("gem-tiny", engine="vllm", model_kwargs=SMALL).gem is vllm_gem


async def test_vectors_equal_those_of_transformers(vllm_gem: Gem) -> None:
    on_vllm, reference = GemEmbedding(vllm_gem), GemEmbedding("gem-tiny")
    expected = reference.get_text_embedding_batch(TEXTS)
    vectors = await on_vllm.aget_text_embedding_batch(TEXTS)
    assert np.allclose(vectors, expected, atol=1e-3)
    assert min(np.sum(np.multiply(vectors, expected), axis=1)) > 0.9999
    queries = [on_vllm.get_query_embedding(TEXTS[0]), await on_vllm.aget_query_embedding(TEXTS[0])]
    assert np.allclose(queries, reference.get_query_embedding(TEXTS[0]), atol=1e-3)


async def test_concurrent_results_equal_sequential_ones(vllm_gem: Gem) -> None:
    embedding = GemEmbedding(vllm_gem)
    sequential = [embedding.get_text_embedding(text) for text in TEXTS]
    concurrent = await asyncio.gather(*map(embedding.aget_text_embedding, TEXTS))
    assert np.allclose(concurrent, sequential, atol=1e-4)


async def test_a_store_is_used_on_both_engines(vllm_gem: Gem, tmp_path: Path) -> None:
    store = GemVectorStore(tmp_path, vllm_gem)
    nodes = [TextNode(text=text) for text in TEXTS]
    index = VectorStoreIndex.from_vector_store(store, store.embed_model)
    await index.ainsert_nodes(nodes)
    found = await index.as_retriever(similarity_top_k=3).aretrieve("how to open a file")
    again = GemVectorStore(tmp_path, "gem-tiny", engine="transformers")
    reopened = VectorStoreIndex.from_vector_store(again, again.embed_model)
    others = reopened.as_retriever(similarity_top_k=3).retrieve("how to open a file")
    assert [node.node_id for node in others] == [node.node_id for node in found]
    assert [n.score for n in others] == pytest.approx([n.score for n in found], abs=1e-3)
