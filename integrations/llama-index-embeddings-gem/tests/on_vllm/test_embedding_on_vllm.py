"""`GemEmbedding` on vLLM returns the vectors of the transformers engine."""

from __future__ import annotations

import asyncio

import numpy as np
from llama_index.embeddings.gem import GemEmbedding
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
