"""What a model's embeddings are measured beside: mean pooling without training, and BM25.

Knows nothing about GEM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def mean_pooled(folder: Path, *groups: Sequence[Sequence[int]]) -> list[FloatArray]:
    """Mean of a plain model's last layer, the usual embedding of one that has not been trained.

    folder: of the model. groups: token ids of texts; for each group unit rows [n, hidden].
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).base_model.eval()
    found = []
    with torch.inference_mode():
        for rows in groups:
            means = [model(torch.tensor([list(row)])).last_hidden_state[0].mean(0) for row in rows]
            found.append(torch.nn.functional.normalize(torch.stack(means), dim=-1).numpy())
    return found


def bm25(queries: Sequence[str], documents: Sequence[str]) -> FloatArray:
    """BM25 scores by bm25s, [queries, documents]."""
    import bm25s

    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(documents), show_progress=False), show_progress=False)
    words = bm25s.tokenize(list(queries), return_ids=False, show_progress=False)
    return np.stack([retriever.get_scores(w) if w else np.zeros(len(documents)) for w in words])


def bm25_hits(
    queries: Sequence[str], documents: Sequence[str], depth: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Rows and scores of the documents that BM25 finds for each query, best first:
    [queries, depth]."""
    import bm25s

    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(documents), show_progress=False), show_progress=False)
    words = bm25s.tokenize(list(queries), show_progress=False)
    rows, scores = retriever.retrieve(words, k=min(depth, len(documents)), show_progress=False)
    return rows.astype(np.int64), scores


def sentence_transformer(folder: str | Path, *groups: Sequence[str]) -> list[FloatArray]:
    """Unit rows [n, dim] for each group of texts by a sentence-transformers model."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder))
    return [
        np.asarray(model.encode(list(texts), normalize_embeddings=True), np.float32)
        for texts in groups
    ]
