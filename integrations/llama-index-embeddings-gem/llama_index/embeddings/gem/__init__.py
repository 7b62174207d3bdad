"""Embeddings and retrieval with gem-rag for LlamaIndex."""

from llama_index.embeddings.gem.base import GemEmbedding
from llama_index.embeddings.gem.rerank import GemRerank
from llama_index.embeddings.gem.retriever import GemRetriever

__all__ = ["GemEmbedding", "GemRerank", "GemRetriever"]
