"""gem-rag in LangChain: embeddings, chat, completion and retrieval with one set of weights."""

from langchain_gem._version import __version__
from langchain_gem.chat_models import ChatGem
from langchain_gem.embeddings import GemEmbeddings
from langchain_gem.llms import GemLLM
from langchain_gem.reranker import GemReranker
from langchain_gem.retrievers import GemRetriever
from langchain_gem.vector_stores import GemVectorStore

__all__ = [
    "ChatGem",
    "GemEmbeddings",
    "GemLLM",
    "GemReranker",
    "GemRetriever",
    "GemVectorStore",
    "__version__",
]
