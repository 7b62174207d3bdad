"""A teacher's vectors: from a sentence-transformers model, the data, or the model itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gem_rag.core.arrays import FloatArray, IntArray
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError
from gem_rag.evaluation.baselines import MeanPooled
from gem_rag.training.corpus import Corpus
from gem_rag.training.recipe import TEACHER_COLUMNS

_GPU_BATCH = 256  # texts
_WHITENED = 10_000  # texts are enough for a mean and a covariance
_LEAST_VARIANCE = 1e-4  # of the largest one: directions of less are noise


def add_teacher_vectors(
    corpus: Corpus, teacher: Any, tokenizer: SafeTokenizer, drawn: IntArray | None = None
) -> Corpus:
    """Add a teacher's vectors of what the student reads to a corpus.

    Args:
        corpus: The corpus.
        teacher: A model with sentence-transformers' `encode`, or None if the vectors are in the
            data.
        tokenizer: The student's tokenizer.
        drawn: Numbers of the rows that get vectors, in order: the others have none. Default all.

    Returns:
        The corpus with the vectors.

    Raises:
        InputError: Vectors in the data are missing, or of different lengths.
    """
    columns = TEACHER_COLUMNS.get(corpus.source.kind, {})  # none where nothing is embedded
    rows = corpus.rows
    if teacher is None:
        _check_vectors(corpus, list(columns.values()))
        return corpus
    drawn = np.arange(len(rows)) if drawn is None else drawn
    read = rows.select(drawn)
    for tokens, vectors in columns.items():
        encoded = _encode(teacher, tokenizer.decode_batch(read[tokens][:]))
        if vectors in rows.column_names:
            rows = rows.remove_columns(vectors)
        rows = rows.add_column(vectors, _column(encoded, drawn, len(rows)))
    return dataclasses.replace(corpus, rows=rows)


def _column(vectors: FloatArray, places: IntArray, length: int) -> Any:
    """A column with vectors, [n, dim], at n places and nothing at the others; arrow's own array,
    since millions of numbers as Python's objects take longer than the teacher does."""
    lengths = np.zeros(length, dtype=np.int64)
    lengths[places] = vectors.shape[1]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.LargeListArray.from_arrays(
        pa.array(offsets), pa.array(vectors.ravel()), mask=pa.array(lengths == 0)
    )


def _encode(teacher: Any, texts: Sequence[str]) -> FloatArray:
    """A teacher's vectors, [n, dim]; equal texts are read once, as many questions have the same
    answer."""
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    # The library's 32 texts at once leave a GPU idle most of the time.
    options = {"batch_size": _GPU_BATCH} if torch.accelerator.is_available() else {}
    vectors = teacher.encode(list(distinct), convert_to_numpy=True, **options)
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors[[distinct[text] for text in texts]]


def teacher_dim(corpora: Sequence[Corpus]) -> int | None:
    """Length of the teacher's vectors in some data; None if there are none.

    Raises:
        InputError: They differ from source to source.
    """
    found = {}
    for corpus in corpora:
        for column in TEACHER_COLUMNS.get(corpus.source.kind, {}).values():
            if column in corpus.rows.column_names:
                vectors = (vector for vector in corpus.rows[column] if vector is not None)
                found[corpus.name] = len(next(vectors, ()))
    if len(set(found.values())) > 1:
        lengths = ", ".join(f"{length} in {name}" for name, length in found.items())
        raise InputError(f"a teacher's vectors have one length, and not {lengths}")
    return next(iter(found.values()), None)


class WhitenedMeanPooling:
    """A language model's own mean-pooled vectors, whitened (arXiv 2103.15316).

    Args:
        folder: Of the model.
        texts: Whose vectors get the mean zero and, in every direction they have, the variance one.

    Raises:
        InputError: The texts are so few that whitening gives all of them the same distance.
    """

    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        self._pooled = MeanPooled(folder)
        texts = list(texts)[:_WHITENED]
        self._known: dict[str, FloatArray] = {}  # a pass of each text is what training pays for
        vectors = self._embed(texts).astype(np.float64)
        self._mean = vectors.mean(axis=0)
        centred = vectors - self._mean
        values, directions = np.linalg.eigh(centred.T @ centred / len(centred))
        kept = values > _LEAST_VARIANCE * values.max()
        distinct = len(set(texts))
        if kept.sum() >= distinct - 1:  # as many directions as texts: nothing is left to learn
            raise InputError(
                f"teacher: base has {distinct} different documents to whiten the vectors of, fewer "
                "than the directions they have: give more data, or name a sentence-transformers "
                "model as teacher"
            )
        self._matrix = directions[:, kept] / np.sqrt(values[kept])

    def encode(self, texts: Sequence[str], **options: Any) -> FloatArray:
        """Vectors of texts, [n, dim]; as sentence-transformers' `encode`."""
        vectors = (self._embed(texts) - self._mean) @ self._matrix
        return np.asarray(vectors, dtype=np.float32)

    def _embed(self, texts: Sequence[str]) -> FloatArray:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._pooled.embed_documents(new), strict=True))
        return np.stack([self._known[text] for text in texts])


class _InBfloat16:
    """A sentence-transformers model whose products are computed in bfloat16."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, texts: Sequence[str], **options: Any) -> FloatArray:
        """As sentence-transformers' `encode`."""
        with torch.autocast(torch.device(self._model.device).type, torch.bfloat16):
            vectors: FloatArray = self._model.encode(texts, **options)
        return vectors


def load_teacher(name: str, bfloat16: bool = False) -> Any:
    """Load a sentence-transformers model.

    Args:
        name: A folder or hub name.
        bfloat16: Whether its products are computed in bfloat16, as the student's are.

    Returns:
        A model with sentence-transformers' `encode`.

    Raises:
        InputError: The model or the library is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError(
            "a teacher needs sentence-transformers: pip install 'gem-rag[export]', or give vectors "
            "in the data (teacher: columns)"
        ) from None
    try:
        model = SentenceTransformer(name)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"teacher {name!r} cannot be loaded: {reason}") from None
    return _InBfloat16(model) if bfloat16 else model


def _check_vectors(corpus: Corpus, columns: Sequence[str]) -> None:
    """Raise InputError unless all vectors of a source have one length and are finite."""
    length = None
    for column in columns:
        if column not in corpus.rows.column_names:
            windows = (
                " (pieces of texts have none)" if corpus.source.truncation == "windows" else ""
            )
            raise InputError(
                f"data {corpus.name!r} has no column {column!r} of a teacher's vectors{windows}: "
                "add it, or name a teacher"
            )
        for row, vector in zip(corpus.rows["row"], corpus.rows[column], strict=True):
            if not _is_vector(vector) or len(vector) != (length or len(vector)):
                raise InputError(
                    f"data {corpus.name!r}, row {row}: {column!r} is no vector of "
                    f"{length or 'any'} finite numbers"
                )
            length = len(vector)


def _is_vector(value: Any) -> bool:
    return bool(
        isinstance(value, list)
        and value
        and all(isinstance(number, int | float) for number in value)
        and np.isfinite(value).all()
    )
