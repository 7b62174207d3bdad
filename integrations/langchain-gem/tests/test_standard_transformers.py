"""langchain-tests' integration suites on the transformers engine."""

from standard import ChatSuite, EmbeddingsSuite, RetrieverSuite

OPTIONS = {"engine": "transformers"}


class TestEmbeddings(EmbeddingsSuite):
    options = OPTIONS


class TestChat(ChatSuite):
    options = OPTIONS


class TestRetriever(RetrieverSuite):
    options = OPTIONS
