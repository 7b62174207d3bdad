"""The same RAG in LangChain and in LlamaIndex, with FAISS and with Chroma: one set of weights.

Reads one folder (Python's language reference, as `examples/demo.py` writes it), builds the four
stores, asks each of them the same questions, lets both frameworks answer, and shows what the
process holds after each step. Needs `langchain-gem`, both LlamaIndex packages, and the stores:

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
from gem_rag.documents.document import Chunk, Document
from gem_rag.documents.readers import read_paths
from gem_rag.documents.splitting import Splitter, chunks

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
    """Build the four, compare their hits, and count the copies of the weights."""
    memory = Memory()
    gem = gem_rag.load(model)
    splitter = Splitter(gem.tokenizer, min(256, gem.max_length))
    read = read_paths([folder or write_reference()], Path.cwd())
    documents = [document for document in read if isinstance(document, Document)]
    parts = [chunk for d in documents for chunk in chunks(d, splitter.spans(d))]
    memory.note("gem_rag.load, once")
    stores: dict[str, Search] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in {
            "LangChain, FAISS": langchain_faiss,
            "LangChain, Chroma": langchain_chroma,
            "LlamaIndex, FAISS": llama_faiss,
            "LlamaIndex, Chroma": llama_chroma,
        }.items():
            stores[name] = build(parts, model, Path(scratch) / name)
            memory.note(name)
        found = {
            name: [search(question) for question in QUESTIONS] for name, search in stores.items()
        }
        passages = found["LangChain, FAISS"][0]
    answers = ask(model, passages)
    memory.note("ChatGem and GemLLM answer")
    memory.show()
    first, *others = found.values()
    same = all(other == first for other in others)
    for name, hits in found.items():
        differing = [
            q for q, own, theirs in zip(QUESTIONS, hits, first, strict=True) if own != theirs
        ]
        if differing:
            print(f"{name} differs from LangChain, FAISS: {differing}")
    print(f"{len(parts)} chunks, {len(QUESTIONS)} questions, {K} hits each: "
          f"{'the same in all four' if same else 'NOT the same'}")  # fmt: skip
    for name, text in answers.items():
        print(f"{name}: {text.strip()!r}")
    models = sum(isinstance(thing, PreTrainedModel) and thing.can_generate()
                 for thing in gc.get_objects())  # fmt: skip
    print(f"language models in this process: {models}")
    raise typer.Exit(0 if same and models == 1 else 1)


def langchain_faiss(parts: Sequence[Chunk], model: str, place: Path) -> Search:
    store = FAISS.from_documents(as_documents(parts), GemEmbeddings(model=model))
    return lambda question: [d.page_content for d in store.similarity_search(question, k=K)]


def langchain_chroma(parts: Sequence[Chunk], model: str, place: Path) -> Search:
    embeddings = GemEmbeddings(model=model)
    store = Chroma(
        "langchain", embeddings, persist_directory=str(place), collection_configuration=EXACT
    )
    store.add_documents(as_documents(parts))
    return lambda question: [d.page_content for d in store.similarity_search(question, k=K)]


def llama_faiss(parts: Sequence[Chunk], model: str, place: Path) -> Search:
    embedding = GemEmbedding(model=model)
    store = FaissVectorStore(faiss.IndexFlatIP(gem_rag.load(model).dim))
    return llama(parts, embedding, store)


def llama_chroma(parts: Sequence[Chunk], model: str, place: Path) -> Search:
    client = chromadb.PersistentClient(str(place))
    collection = client.create_collection("llama-index", configuration=EXACT)
    return llama(parts, GemEmbedding(model=model), ChromaVectorStore(collection))


def llama(parts: Sequence[Chunk], embedding: GemEmbedding, store: object) -> Search:
    context = StorageContext.from_defaults(vector_store=store)
    nodes = [TextNode(text=part.passage) for part in parts]
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=embedding)
    retriever = index.as_retriever(similarity_top_k=K)
    return lambda question: [hit.node.get_content() for hit in retriever.retrieve(question)]


def ask(model: str, passages: Sequence[str]) -> dict[str, str]:
    """Both frameworks' chat models read the same passage."""
    context = f"[1] {passages[0]}"
    said = [("system", context), ("human", QUESTIONS[0])]
    theirs = [ChatMessage(role=role.replace("human", "user"), content=text) for role, text in said]
    return {
        "ChatGem": ChatGem(model=model, max_tokens=40).invoke(said).text,
        "GemLLM": str(GemLLM(model=model, max_tokens=40).chat(theirs).message.content),
    }


def as_documents(parts: Sequence[Chunk]) -> list[LangChainDocument]:
    return [LangChainDocument(part.passage, metadata={"source": part.source}) for part in parts]


class Memory:
    """What the process holds, step by step."""

    def __init__(self) -> None:
        self._table = Table("step", "process, MiB", "more, MiB")
        self._last = 0.0
        self.note("libraries imported")

    def note(self, step: str) -> None:
        gc.collect()
        now = psutil.Process().memory_info().rss / 2**20
        self._table.add_row(step, f"{now:.0f}", f"{now - self._last:.0f}")
        self._last = now

    def show(self) -> None:
        Console().print(self._table)


if __name__ == "__main__":
    typer.run(main)
