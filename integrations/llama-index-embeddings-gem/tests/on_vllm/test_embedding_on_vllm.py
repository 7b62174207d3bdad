"""`GemEmbedding` on vLLM gives the vectors of the transformers engine."""

from __future__ import annotations

import asyncio

import numpy as np
from llama_index.embeddings.gem import GemEmbedding
from on_vllm import SMALL

from gem_rag.model import Gem

TEXTS = ["open a file", "sort a list in place", "raise an error", "a\n\nb  c\t", "x"]


def test_a_name_means_the_same_engine(served: Gem) -> None:
    assert GemEmbedding("gem-tiny", engine="vllm", model_kwargs=SMALL).gem is served


async def test_vectors_are_those_of_the_other_engine(served: Gem) -> None:
    there, here = GemEmbedding(served), GemEmbedding("gem-tiny")
    wanted = here.get_text_embedding_batch(TEXTS)
    found = await there.aget_text_embedding_batch(TEXTS)
    assert np.allclose(found, wanted, atol=1e-3)
    assert min(np.sum(np.multiply(found, wanted), axis=1)) > 0.9999
    queries = [there.get_query_embedding(TEXTS[0]), await there.aget_query_embedding(TEXTS[0])]
    assert np.allclose(queries, here.get_query_embedding(TEXTS[0]), atol=1e-3)


async def test_many_at_once_get_what_each_gets_alone(served: Gem) -> None:
    embedding = GemEmbedding(served)
    alone = [embedding.get_text_embedding(text) for text in TEXTS]
    together = await asyncio.gather(*map(embedding.aget_text_embedding, TEXTS))
    assert np.allclose(together, alone, atol=1e-4)
