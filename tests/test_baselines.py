"""Baselines: mean pooling whatever is beside a text, and what a ranking needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from gem_rag.evaluation.baselines import MeanPooled, bm25, bm25_hits, mean_pooled


def test_mean_pooling_is_that_of_each_text_alone(plain_folder: Callable[[str], Path]) -> None:
    folder = plain_folder("llama")
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 50, size=int(n)).tolist() for n in rng.integers(1, 40, size=70)]
    (found,) = mean_pooled(folder, rows)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).base_model.eval()
    with torch.inference_mode():
        for row, vector in zip(rows, found, strict=True):
            mean = model(torch.tensor([row])).last_hidden_state[0].mean(0)
            assert np.allclose(vector, torch.nn.functional.normalize(mean, dim=0), atol=1e-5)


def test_texts_are_cut(plain_folder: Callable[[str], Path]) -> None:
    model = MeanPooled(plain_folder("llama"), max_length=3)
    one, other = model.embed_documents(["one two three four five", "one two three four six"])
    assert np.allclose(one, other)


def test_bm25_hits_are_its_best_scores() -> None:
    documents = ["a pump moves water", "a lamp gives light", "water and light", "nothing at all"]
    queries = ["what moves water", "light"]
    rows, scores = bm25_hits(queries, documents, 2)
    whole = bm25(queries, documents)
    assert rows[0, 0] == whole[0].argmax() == 0
    assert np.allclose(scores, np.sort(whole, axis=1)[:, :1:-1], atol=1e-5)


def test_bm25_finds_nothing_where_there_are_no_words() -> None:
    """Stop words and signs alone, of which bm25s makes no index."""
    documents = ["to be", "? !", ""]
    assert not bm25(["pump", "the"], documents).any()
    rows, scores = bm25_hits(["pump", "the"], documents, 2)
    assert rows.shape == (2, 2)
    assert not scores.any()
    assert bm25(["pump", "", "lamp"], ["a pump", "the"]).astype(bool).tolist() == [
        [True, False], [False, False], [False, False]
    ]  # fmt: skip
