"""Packed sequences, and the batches that steps read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gem_tiny.packing import PackedSequences, pack_documents, pack_rows
from packed_data import mixture, sequences


def test_documents_are_one_stream() -> None:
    found = pack_documents([[5, 6, 7], [8], [9, 10, 11, 12]], length=3, eos=1)
    assert found.tokens.tolist() == [[5, 6, 7, 1], [1, 8, 1, 9], [9, 10, 11, 12]]
    assert found.weights.all()


def test_rows_stay_whole() -> None:
    pairs = [([5, 6], [7]), ([8], [9]), ([4] * 20, [4]), ([5], [5, 5])]
    found = pack_rows(pairs, length=7, eos=1, pad=2, answer_weight=9)
    assert found.tokens.tolist() == [[5, 6, 7, 1, 8, 9, 1, 2], [5, 5, 5, 1, 2, 2, 2, 2]]
    assert found.weights.tolist() == [[1, 1, 9, 9, 1, 9, 9, 0], [1, 9, 9, 9, 0, 0, 0, 0]]


def test_sequences_are_kept(tmp_path: Path) -> None:
    found = sequences(0)
    found.save(tmp_path / "documents.npz")
    again = PackedSequences.load(tmp_path / "documents.npz")
    assert again.fingerprint() == found.fingerprint() != sequences(1).fingerprint()
    assert [file.name for file in tmp_path.iterdir()] == ["documents.npz"]


def test_every_sequence_is_read_once_an_epoch() -> None:
    data = mixture()
    read, again = (
        [made.batch_at(step, decay_start=4) for step in range(8)] for made in (data, mixture())
    )
    for one, other in zip(read, again, strict=True):
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
    # Of 128 tokens a quarter is of rows of 16 tokens, then half; the others are documents of 8.
    counts = [tuple(len(tokens) for tokens, _ in step) for step in read]
    assert counts == [(2, 12)] * 4 + [(4, 8)] * 4
    for group, source, steps in ((0, data.rows, 8), (1, data.documents, 4)):
        seen = np.concatenate([step[group][0] for step in read[:steps]])
        assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, source.tokens.tolist()))
