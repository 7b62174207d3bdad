"""A teacher's vectors: from a sentence-transformers model, or from the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError
from gem_rag.training.corpus import Corpus
from gem_rag.training.recipe import TEACHER_COLUMNS


def add_teacher_vectors(corpus: Corpus, teacher: Any, tokenizer: SafeTokenizer) -> Corpus:
    """Add a teacher's vectors of what the student reads to a corpus.

    Args:
        corpus: The corpus.
        teacher: A sentence-transformers model, or None if the vectors are in the data.
        tokenizer: The student's tokenizer.

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
    for tokens, vectors in columns.items():
        texts = [tokenizer.decode(ids) for ids in rows[tokens]]
        encoded = np.asarray(teacher.encode(texts, convert_to_numpy=True), dtype=np.float32)
        if vectors in rows.column_names:
            rows = rows.remove_columns(vectors)
        rows = rows.add_column(vectors, list(encoded))
    return dataclasses.replace(corpus, rows=rows)


def load_teacher(name: str) -> Any:
    """Load a sentence-transformers model; raises InputError if it or the library is missing."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError(
            "a teacher needs sentence-transformers: pip install 'gem-rag[export]', or give vectors "
            "in the data (teacher: columns)"
        ) from None
    try:
        return SentenceTransformer(name)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"teacher {name!r} cannot be loaded: {reason}") from None


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
