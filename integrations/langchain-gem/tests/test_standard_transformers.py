"""langchain-tests' integration suites on the transformers engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from standard import ChatSuite, EmbeddingsSuite, RetrieverSuite, other_model

import gem_rag

OPTIONS = {"engine": "transformers"}


@pytest.fixture(scope="module", autouse=True)
def _other_model() -> Iterator[None]:
    """The model that calls switch to, kept for the module."""
    with gem_rag.load(other_model()):
        yield


class TestEmbeddings(EmbeddingsSuite):
    options = OPTIONS


class TestChat(ChatSuite):
    options = OPTIONS


class TestRetriever(RetrieverSuite):
    options = OPTIONS
