"""gem-rag in LangChain: embeddings, chat, completion and retrieval with one set of weights."""

from langchain_gem._version import __version__
from langchain_gem.chat_models import ChatGem
from langchain_gem.embeddings import GemEmbeddings
from langchain_gem.llms import GemLLM
from langchain_gem.retrievers import GemRetriever

__all__ = ["ChatGem", "GemEmbeddings", "GemLLM", "GemRetriever", "__version__"]
