"""The LLM of gem-rag for LlamaIndex."""

from llama_index.llms.gem.base import GemLLM

__all__ = ["GemLLM"]
