"""A stand-in for `Gem` that embeds words by hashing them: no weights, no torch, instant.

For tests of what the index does with vectors, not of the vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from gem_rag.core.config import GemConfig


class FakeGem:
    """Vectors are sums of the texts' word vectors; a token is a word or a mark."""

    has_chat_template = False
    context_length = 1000
    max_length = max_document_tokens = 64
    dtype = "float32"

    def __init__(self, name: str = "fake", dim: int = 64) -> None:
        self.name = name
        self.dim = dim
        self.fingerprint = hashlib.sha256(f"{name}{dim}".encode()).hexdigest()
        self.config = GemConfig()
        self.embedded: list[str] = []
        self.tokenizer = tokenizers.Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    def embed_documents(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        self.embedded += texts
        return self.embed_queries(texts)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.stack([sum(map(self._word, text.lower().split())) for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def embed_chunks_batch(
        self, documents: Sequence[tuple[str, Sequence[tuple[int, int]]]]
    ) -> np.ndarray:
        """Parts' own words, and a little of those before."""
        vectors = np.zeros((sum(len(spans) for _, spans in documents), self.dim))
        parts = [(text, *span) for text, spans in documents for span in spans]
        for vector, (text, start, stop) in zip(vectors, parts, strict=True):
            self.embedded.append(text[start:stop])
            vector += self.embed_queries([text[start:stop]])[0]
            if text[:start].strip():
                vector += 0.3 * self.embed_queries([text[:start]])[0]
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(f"{self.name}{word}".encode()).digest()[:8], "little")
        return np.random.default_rng(seed).normal(size=self.dim)
