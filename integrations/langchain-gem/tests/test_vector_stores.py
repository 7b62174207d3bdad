"""LangChain's own vector stores with `GemEmbeddings`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_chroma import Chroma
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_gem import GemEmbeddings
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from standard import DOCUMENTS

TEXTS = [Document(d.text, metadata={"source": d.source}) for d in DOCUMENTS]
QUESTION = "how to open a file"


class TestChroma(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        store = Chroma(embedding_function=self.get_embeddings())
        yield store
        store.delete_collection()

    @staticmethod
    def get_embeddings() -> Embeddings:
        return GemEmbeddings()


def sources(store: VectorStore) -> list[str]:
    return [d.metadata["source"] for d in store.similarity_search(QUESTION, k=4)]


def expected() -> list[str]:
    return sources(InMemoryVectorStore.from_documents(TEXTS, GemEmbeddings()))


def test_faiss_finds_the_same_when_reloaded(tmp_path: Path) -> None:
    store = FAISS.from_documents(TEXTS, GemEmbeddings())
    assert sources(store) == expected()
    store.save_local(str(tmp_path))
    # allow_dangerous_deserialization: the pickle is our own.
    reloaded = FAISS.load_local(
        str(tmp_path), GemEmbeddings(), allow_dangerous_deserialization=True
    )
    assert sources(reloaded) == expected()


def test_chroma_finds_the_same_when_reloaded(tmp_path: Path) -> None:
    store = Chroma.from_documents(TEXTS, GemEmbeddings(), persist_directory=str(tmp_path))
    assert sources(store) == expected()
    reloaded = Chroma(persist_directory=str(tmp_path), embedding_function=GemEmbeddings())
    assert sources(reloaded) == expected()


async def test_stores_in_a_chain() -> None:
    store = await InMemoryVectorStore.afrom_documents(TEXTS, GemEmbeddings())
    documents = await store.as_retriever(search_kwargs={"k": 1}).ainvoke(QUESTION)
    assert documents[0].metadata["source"] == expected()[0]
