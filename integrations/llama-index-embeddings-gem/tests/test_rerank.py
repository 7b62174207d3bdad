"""Nodes are reranked by the model that found them."""

from __future__ import annotations

import pickle

import pytest
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.gem import GemRerank

from gem_rag import InputError

TEXTS = [
    "open(path) returns a file object; close it when you are done.",
    "list.append(x) adds an item to the end of the list.",
    "dict.get(key) returns None where the key is missing.",
]
QUESTION = "How do I append an item to a list?"


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]


async def test_the_best_come_first(nodes: list[NodeWithScore]) -> None:
    rerank = GemRerank(top_n=2)
    found = rerank.postprocess_nodes(nodes, query_str=QUESTION)
    assert len(found) == 2
    assert TEXTS[1] in [node.text for node in found]
    assert [node.score for node in found] == [0.5, 0.5]
    assert await rerank.apostprocess_nodes(nodes, QueryBundle(QUESTION)) == found
    everything = GemRerank().postprocess_nodes(nodes, query_str=QUESTION)
    assert everything[:2] == found
    assert len(everything) == 3
    assert rerank.postprocess_nodes([], query_str=QUESTION) == []


def test_without_a_query_there_is_no_order(nodes: list[NodeWithScore]) -> None:
    with pytest.raises(InputError, match="give query_bundle or query_str"):
        GemRerank().postprocess_nodes(nodes)


def test_settings_travel_and_weights_do_not() -> None:
    rerank = GemRerank(top_n=2)
    assert rerank.gem is GemRerank.from_dict(rerank.to_dict()).gem
    copy = pickle.loads(pickle.dumps(rerank))
    assert (copy.model_name, copy.top_n) == ("gem-tiny", 2)
    assert len(pickle.dumps(rerank)) < 10_000
