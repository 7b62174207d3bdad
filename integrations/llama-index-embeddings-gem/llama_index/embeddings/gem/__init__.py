"""Embeddings, retrieval and a vector store with gem-rag for LlamaIndex."""

from llama_index.embeddings.gem.base import GemEmbedding
from llama_index.embeddings.gem.rerank import GemRerank
from llama_index.embeddings.gem.retriever import GemRetriever
from llama_index.embeddings.gem.vector_store import GemVectorStore

__all__ = ["GemEmbedding", "GemRerank", "GemRetriever", "GemVectorStore"]
