"""Search by words: BM25 over texts, by bm25s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gem_rag.core.arrays import FloatArray

# bm25s leaves a factor out that is the same for all words (k1 + 1), with k1 = 1.5: a word that
# a text of average length holds once scores its rarity by this.
_ONCE = 2.5


class WordIndex:
    """BM25 over texts, in memory.

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s  # it imports numba, if that is there, which takes seconds

        self._size = len(texts)
        self._retriever: Any = None
        words = bm25s.tokenize(list(texts), show_progress=False)
        if any(words.ids):  # else texts have no words but stop words, of which bm25s makes no index
            self._retriever = bm25s.BM25()
            self._retriever.index(words, show_progress=False)

    def search(
        self, questions: Sequence[str], depth: int
    ) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Rows and scores of the texts found for each question, best first; the score is 0 where a
        text has none of the words: [questions, depth], or as many as there are."""
        import bm25s

        depth = min(depth, self._size)
        if self._retriever is None:
            shape = (len(questions), depth)
            return np.broadcast_to(np.arange(depth), shape).copy(), np.zeros(shape, np.float32)
        words = bm25s.tokenize(list(questions), show_progress=False)
        rows, scores = self._retriever.retrieve(words, k=depth, show_progress=False)
        return rows.astype(np.int64), scores

    def shares(self, questions: Sequence[str]) -> FloatArray:
        """As `scores`, as an index fuses them with cosines: shares of what a text of average length
        has that holds each of a question's words once, 1 at most."""
        import bm25s

        scores = self.scores(questions)
        if self._retriever is None:
            return scores
        for row, words in zip(
            scores,
            bm25s.tokenize(list(questions), return_ids=False, show_progress=False),
            strict=True,
        ):
            whole = sum(map(self._rarity, set(words)))
            row *= _ONCE / max(whole, 1e-9)
        return np.minimum(scores, 1)

    def _rarity(self, word: str) -> float:
        """Its inverse document frequency, as bm25s has it."""
        number = self._retriever.vocab_dict.get(word)
        texts = self._retriever.scores["indptr"]  # where each word's texts begin
        holding = 0 if number is None else int(texts[number + 1] - texts[number])
        return math.log(1 + (self._size - holding + 0.5) / (holding + 0.5))

    def scores(self, questions: Sequence[str]) -> FloatArray:
        """Scores of all texts, [questions, texts]; 0 where a text has none of the words."""
        import bm25s

        scores = np.zeros((len(questions), self._size), np.float32)
        if self._retriever is None:
            return scores
        words = bm25s.tokenize(list(questions), return_ids=False, show_progress=False)
        for row, question in zip(scores, words, strict=True):
            if question:
                row[:] = self._retriever.get_scores(question)
        return scores
