"""The same RAG in LangChain and LlamaIndex, with FAISS and Chroma, on one set of weights.

Reads a folder (Python's language reference, as `examples/demo.py` writes it), builds the four
vector stores, asks each of them the same questions, lets both frameworks answer, and shows the
memory of the process after each step. Needs `langchain-gem`, both LlamaIndex packages, and the
stores:

    pip install langchain-gem llama-index-llms-gem llama-index-embeddings-gem langchain-chroma
    pip install langchain-community llama-index-vector-stores-faiss llama-index-vector-stores-chroma
    python examples/same_rag.py [FOLDER]
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import chromadb
import faiss
import psutil
import typer
from demo import write_reference
from langchain_chroma import Chroma
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document as LangChainDocument
from langchain_gem import ChatGem, GemEmbeddings
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from llama_index.embeddings.gem import GemEmbedding
from llama_index.llms.gem import GemLLM
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

import gem_rag
from gem_rag import Chunk, Document
from gem_rag.documents.readers import read_paths
from gem_rag.documents.splitting import Splitter

QUESTIONS = (
    "What is a lambda expression?",
    "What does the yield statement do?",
    "How are default parameter values evaluated?",
    "What is raised when a name is not found?",
)
K = 5
EXACT = {"hnsw": {"ef_construction": 500, "ef_search": 500}}  # Chroma's search is approximate
Search = Callable[[str], list[str]]


def main(
    folder: Annotated[Path | None, typer.Argument(help="default: Python's reference")] = None,
    model: str = "gem-tiny",
) -> None:
    """Build the four stores, compare their results, and count the copies of the weights."""
    memory = Memory()
    gem = gem_rag.load(model)
    splitter = Splitter(gem.tokenizer, min(256, gem.max_length))
    files = read_paths([folder or write_reference()], Path.cwd())
    documents = [document for document in files if isinstance(document, Document)]
    passages = [chunk for document in documents for chunk in splitter.split(document)]
    memory.record("gem_rag.load, once")
    stores: dict[str, Search] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in {
            "LangChain, FAISS": langchain_faiss,
            "LangChain, Chroma": langchain_chroma,
            "LlamaIndex, FAISS": llama_faiss,
            "LlamaIndex, Chroma": llama_chroma,
        }.items():
            stores[name] = build(passages, model, Path(scratch) / name)
            memory.record(name)
        hits = {
            name: [search(question) for question in QUESTIONS] for name, search in stores.items()
        }
    reference = hits["LangChain, FAISS"]
    answers = ask(model, reference[0][0])
    memory.record("ChatGem and GemLLM answer")
    memory.show()
    for name, own_hits in hits.items():
        differing = [
            question
            for question, own, other in zip(QUESTIONS, own_hits, reference, strict=True)
            if own != other
        ]
        if differing:
            print(f"{name} differs from LangChain, FAISS: {differing}")
    same = all(own_hits == reference for own_hits in hits.values())
    print(
        f"{len(passages)} chunks, {len(QUESTIONS)} questions, {K} hits each: "
        f"{'the same in all four' if same else 'NOT the same'}"
    )
    for name, text in answers.items():
        print(f"{name}: {text.strip()!r}")
    models = count_language_models()
    print(f"language models in this process: {models}")
    raise typer.Exit(0 if same and models == 1 else 1)


def count_language_models() -> int:
    return sum(
        isinstance(thing, PreTrainedModel) and thing.can_generate() for thing in gc.get_objects()
    )


def langchain_faiss(passages: Sequence[Chunk], model: str, folder: Path) -> Search:
    store = FAISS.from_documents(to_documents(passages), GemEmbeddings(model=model))
    return lambda question: [d.page_content for d in store.similarity_search(question, k=K)]


def langchain_chroma(passages: Sequence[Chunk], model: str, folder: Path) -> Search:
    embeddings = GemEmbeddings(model=model)
    store = Chroma(
        "langchain", embeddings, persist_directory=str(folder), collection_configuration=EXACT
    )
    store.add_documents(to_documents(passages))
    return lambda question: [d.page_content for d in store.similarity_search(question, k=K)]


def llama_faiss(passages: Sequence[Chunk], model: str, folder: Path) -> Search:
    embedding = GemEmbedding(model=model)
    store = FaissVectorStore(faiss.IndexFlatIP(gem_rag.load(model).dim))
    return llama_index_search(passages, embedding, store)


def llama_chroma(passages: Sequence[Chunk], model: str, folder: Path) -> Search:
    client = chromadb.PersistentClient(str(folder))
    collection = client.create_collection("llama-index", configuration=EXACT)
    return llama_index_search(passages, GemEmbedding(model=model), ChromaVectorStore(collection))


def llama_index_search(passages: Sequence[Chunk], embedding: GemEmbedding, store: object) -> Search:
    context = StorageContext.from_defaults(vector_store=store)
    nodes = [TextNode(text=chunk.passage) for chunk in passages]
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=embedding)
    retriever = index.as_retriever(similarity_top_k=K)
    return lambda question: [hit.node.get_content() for hit in retriever.retrieve(question)]


def ask(model: str, passage: str) -> dict[str, str]:
    """The answers of both frameworks' chat models to the first question, from one passage."""
    messages = [("system", f"[1] {passage}"), ("user", QUESTIONS[0])]
    chat_messages = [ChatMessage(role=role, content=text) for role, text in messages]
    return {
        "ChatGem": ChatGem(model=model, max_tokens=40).invoke(messages).text,
        "GemLLM": str(GemLLM(model=model, max_tokens=40).chat(chat_messages).message.content),
    }


def to_documents(passages: Sequence[Chunk]) -> list[LangChainDocument]:
    return [
        LangChainDocument(chunk.passage, metadata={"source": chunk.source}) for chunk in passages
    ]


class Memory:
    """The resident memory of this process after each step."""

    def __init__(self) -> None:
        self._table = Table("step", "process, MiB", "added, MiB")
        self._last = 0.0
        self.record("libraries imported")

    def record(self, step: str) -> None:
        gc.collect()
        now = psutil.Process().memory_info().rss / 2**20
        self._table.add_row(step, f"{now:.0f}", f"{now - self._last:.0f}")
        self._last = now

    def show(self) -> None:
        Console().print(self._table)


if __name__ == "__main__":
    typer.run(main)
