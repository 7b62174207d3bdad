"""gem-rag as a LlamaIndex LLM."""

from llama_index.llms.gem.base import GemLLM

__all__ = ["GemLLM"]
