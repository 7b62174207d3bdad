"""`GemModule` by the name that modules.json of exported folders gives."""

from gem_rag.interop.sentence_transformers import GemModule

__all__ = ["GemModule"]
