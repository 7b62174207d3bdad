"""An index as LangChain's vector store, and the model as its reranker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import VectorStore
from langchain_gem import GemEmbeddings, GemReranker, GemVectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from gem_rag import InputError
from gem_rag.adapters import best_first

TEXTS = [
    "open(path) returns a file object; close it when you are done.",
    "list.append(x) adds an item to the end of the list.",
    "dict.get(key) returns None where the key is missing.",
]


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> VectorStore:  # type: ignore[override]
        return GemVectorStore(tmp_path / "index")


@pytest.fixture
def store(tmp_path: Path) -> GemVectorStore:
    metadatas = [{"area": area, "number": n} for n, area in enumerate(("files", "lists", "dicts"))]
    return GemVectorStore.from_texts(
        TEXTS, GemEmbeddings(), metadatas, ids=["a", "b", "c"], index=tmp_path / "index"
    )


def test_searches_take_the_settings_of_an_index(store: GemVectorStore) -> None:
    [(best, score)] = store.similarity_search_with_score("add to a list", k=1)
    assert (best.id, best.page_content) == ("b", TEXTS[1])
    assert best.metadata == {"area": "lists", "number": 1}
    assert 0 < score < 1
    [(_, relevance)] = store.similarity_search_with_relevance_scores("add to a list", k=1)
    assert relevance == pytest.approx(score)
    found = store.similarity_search("add to a list", k=3, filter={"area": ["files", "dicts"]})
    assert {document.id for document in found} == {"a", "c"}
    assert not store.similarity_search("add to a list", min_score=0.999)
    assert [d.id for d in store.similarity_search("append", k=1, ranking="words")] == ["b"]
    assert len(store.max_marginal_relevance_search("a list", k=2)) == 2


def test_a_filter_may_be_a_function(store: GemVectorStore) -> None:
    found = store.similarity_search("add to a list", filter=lambda m: m["area"] != "lists")
    assert {document.id for document in found} == {"a", "c"}


async def test_a_vector_is_a_query(store: GemVectorStore) -> None:
    vector = store.embeddings.embed_query("add to a list")
    by_text = store.similarity_search("add to a list", k=2)
    assert store.similarity_search_by_vector(vector, k=2) == by_text
    assert await store.asimilarity_search_by_vector(vector, k=2) == by_text
    files = store.similarity_search_by_vector(vector, filter={"area": "files"})
    assert [document.id for document in files] == ["a"]
    diverse = store.max_marginal_relevance_search_by_vector(vector, k=2, lambda_mult=1.0)
    assert diverse == by_text
    words = GemVectorStore(store.index, ranking="words")  # of which a vector has none
    assert words.similarity_search_by_vector(vector, k=2) == by_text
    with pytest.raises(InputError, match="embed with that model"):
        store.similarity_search_by_vector([1.0, 0.0])


@pytest.mark.parametrize(
    ("search", "kwargs"),
    [
        ("similarity", {"k": 1}),
        ("mmr", {"k": 1}),
        ("similarity_score_threshold", {"k": 1, "score_threshold": 0.1}),
    ],
)
def test_it_is_a_retriever(store: GemVectorStore, search: str, kwargs: dict[str, Any]) -> None:
    retriever = store.as_retriever(search_type=search, search_kwargs=kwargs)
    assert [document.id for document in retriever.invoke("add to a list")] == ["b"]


def test_it_is_on_disk_and_asked_by_the_index_itself(store: GemVectorStore) -> None:
    again = GemVectorStore(store.index.folder)
    assert [d.id for d in again.similarity_search("add to a list", k=1)] == ["b"]
    assert again.embeddings.gem is store.index.gem
    again.delete()
    assert not GemVectorStore(store.index.folder).index.sources


def test_a_long_text_is_found_once_and_whole(store: GemVectorStore) -> None:
    long = "\n\n".join(f"Paragraph {n} says that list.append adds an item." for n in range(80))
    store.add_documents([Document(long, id="long")])
    assert len(store.index) > 5
    found = store.similarity_search("append adds an item", k=3)
    assert [d.page_content for d in found if d.id == "long"] == [long]
    assert len(found) == 3


def test_other_embeddings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not with DeterministicFakeEmbedding: give GemEmbeddings"):
        GemVectorStore.from_texts(TEXTS, DeterministicFakeEmbedding(size=8), index=tmp_path)


async def test_a_reranker_puts_the_best_first() -> None:
    documents = [Document(text) for text in TEXTS]
    reranker = GemReranker(top_n=2)
    best = reranker.compress_documents(documents, "How do I append an item to a list?")
    assert len(best) == 2
    assert TEXTS[1] in [document.page_content for document in best]
    assert await reranker.acompress_documents(documents, "How do I append to a list?")
    assert reranker.compress_documents([], "anything") == []
    order = best_first(reranker.gem, "x", TEXTS)
    assert sorted(order) == [0, 1, 2]
