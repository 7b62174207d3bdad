"""What adapters for frameworks share."""

from gem_rag.adapters.options import (
    openai_logprobs,
    sampling_options,
    without_harmless,
    without_secrets,
)
from gem_rag.adapters.retrieval import GivenVectors, best_documents, best_first, embed_with_blanks

__all__ = [
    "GivenVectors",
    "best_documents",
    "best_first",
    "embed_with_blanks",
    "openai_logprobs",
    "sampling_options",
    "without_harmless",
    "without_secrets",
]
