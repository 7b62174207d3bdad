"""langchain-tests' integration suites on the vLLM engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from agents import Steps, Tools, calls_of
from langchain.agents import create_agent
from langchain_gem import ChatGem, GemEmbeddings
from standard import ChatSuite, EmbeddingsSuite, RetrieverSuite, other_model

import gem_rag

SMALL = {"dtype": "float32", "kv_cache_memory_bytes": 64 << 20}
VLLM = {"engine": "vllm", "model_kwargs": SMALL}


@pytest.fixture(scope="module", autouse=True)
def _engines() -> Iterator[None]:
    """Both models, kept for the module, so that adapters share them."""
    with ExitStack() as loaded:
        for name in ("gem-tiny", other_model()):
            loaded.enter_context(gem_rag.load(name, "vllm", **SMALL))
        yield


class TestEmbeddings(EmbeddingsSuite):
    options = VLLM


class TestChat(ChatSuite):
    options = VLLM


class TestRetriever(RetrieverSuite):
    options = VLLM


async def test_one_engine_embeds_and_answers_at_once() -> None:
    chat, embeddings = ChatGem(max_tokens=16, **VLLM), GemEmbeddings(**VLLM)
    assert chat.gem is embeddings.gem
    alone = chat.invoke("What is a list?").content
    vectors, *answers = await asyncio.gather(
        embeddings.aembed_documents(["a text"] * 20),
        *(chat.ainvoke("What is a list?") for _ in range(8)),
    )
    assert len(vectors) == 20
    assert {answer.content for answer in answers} == {alone}


async def test_an_agent_takes_its_steps() -> None:
    tools = Tools()
    agent = create_agent(ChatGem(max_tokens=40, **VLLM), tools.all(), middleware=[Steps()])
    result = await agent.ainvoke({"messages": [("user", "What is two and three?")]})
    assert [name for name, _ in tools.calls] == ["find_page", "add"]
    assert calls_of(result["messages"]) == tools.calls
