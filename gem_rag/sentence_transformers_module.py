"""The old home of `GemModule`: exported folders name `gem_rag.sentence_transformers_module`."""

from gem_rag.interop.sentence_transformers import GemModule

__all__ = ["GemModule"]
