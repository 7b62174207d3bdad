"""`GemEmbedding` with FAISS and Chroma, new and reloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import chromadb
import faiss
import numpy as np
import pytest
from llama_index.core import (
    Document,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.node_parser import TokenTextSplitter
from llama_index.embeddings.gem import GemEmbedding
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore

from gem_rag import Gem

TEXTS = [
    "Open a file and return a stream.",
    "Sort the list in place.",
    "Remove a directory and everything in it.",
    "Compile a regular expression into a pattern.",
    "Return the current working directory.",
]
DOCUMENTS = [Document(text=text, metadata={"number": n}) for n, text in enumerate(TEXTS)]
QUESTION = "how to open a file"

Build = Callable[[Path, GemEmbedding], VectorStoreIndex]


def faiss_index(folder: Path, embedding: GemEmbedding) -> VectorStoreIndex:
    """Build the index in memory and write it, or read it if it exists."""
    if folder.exists():
        store = FaissVectorStore.from_persist_dir(str(folder))
        storage = StorageContext.from_defaults(vector_store=store, persist_dir=str(folder))
        return load_index_from_storage(storage, embed_model=embedding)  # type: ignore[return-value]
    store = FaissVectorStore(faiss_index=faiss.IndexFlatIP(embedding.gem.dim))
    index = build_index(store, embedding)
    index.storage_context.persist(str(folder))
    return index


def chroma_index(folder: Path, embedding: GemEmbedding) -> VectorStoreIndex:
    """Build the index on disk, or open it if it exists."""
    exists = folder.exists()
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(folder), settings=settings)
    cosine = {"hnsw:space": "cosine"}
    store = ChromaVectorStore(client.get_or_create_collection("texts", metadata=cosine))
    if exists:
        return VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    return build_index(store, embedding)


def build_index(
    store: FaissVectorStore | ChromaVectorStore, embedding: GemEmbedding
) -> VectorStoreIndex:
    splitter = TokenTextSplitter(chunk_size=64, chunk_overlap=0, tokenizer=embedding.gem.tokenize)
    return VectorStoreIndex.from_documents(
        DOCUMENTS,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embedding,
        transformations=[splitter],
    )


@pytest.mark.parametrize("build", [faiss_index, chroma_index])
async def test_an_index_finds_what_is_nearest(build: Build, gem: Gem, tmp_path: Path) -> None:
    # What LlamaIndex embeds: the text under its metadata.
    passages = [f"number: {n}\n\n{text}" for n, text in enumerate(TEXTS)]
    scores = gem.embed_documents(passages) @ gem.embed_queries([QUESTION])[0]
    expected = np.argsort(-scores)[:3].tolist()
    for _ in ("new", "reloaded"):
        retriever = build(tmp_path / "index", GemEmbedding(gem)).as_retriever(similarity_top_k=3)
        nodes = retriever.retrieve(QUESTION)
        assert [node.metadata["number"] for node in nodes] == expected
        assert [node.text for node in nodes] == [TEXTS[n] for n in expected]
        async_nodes = await retriever.aretrieve(QUESTION)
        assert [node.node_id for node in async_nodes] == [node.node_id for node in nodes]


@pytest.mark.parametrize("build", [faiss_index, chroma_index])
def test_documents_can_be_inserted(build: Build, gem: Gem, tmp_path: Path) -> None:
    index = build(tmp_path / "index", GemEmbedding(gem))
    index.insert(Document(text="How to open a file: call open.", metadata={"number": 9}))
    (nearest,) = index.as_retriever(similarity_top_k=1).retrieve("How to open a file: call open.")
    assert nearest.metadata["number"] == 9
