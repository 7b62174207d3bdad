"""All of a recipe's data: what is trained on, and what is measured on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.training.batches import rows_drawn
from gem_rag.training.corpus import Corpus, HeldOut, load_corpus
from gem_rag.training.made_pairs import PairMaker
from gem_rag.training.recipe import Recipe
from gem_rag.training.scopes import trains_in_bfloat16
from gem_rag.training.sources import read_source
from gem_rag.training.teacher import WhitenedMeanPooling, add_teacher_vectors, load_teacher

_EMBEDDED = {"pairs": "document"}  # the column of documents, of kinds where it is not "text"


def load_data(
    recipe: Recipe, tokenizer: SafeTokenizer, maker: PairMaker | None = None
) -> tuple[list[Corpus], list[HeldOut]]:
    """Load all of a recipe's sources.

    Args:
        recipe: The recipe, with the paths of its data.
        tokenizer: The model's tokenizer.
        maker: Makes the pairs of sources that are documents; needed if there are any.

    Returns:
        Data to train on, and data to measure on.

    Raises:
        InputError: Something cannot be used; the message names the source and the row.
    """
    of_documents = {
        name: maker.make(name, source, recipe)
        for name, source in recipe.data.items()
        if source.kind == "documents" and maker is not None
    }
    corpora = [
        load_corpus(name, of_documents[name][0], _without_held_out(recipe), tokenizer)
        if name in of_documents
        else load_corpus(name, source, recipe, tokenizer)
        for name, source in recipe.data.items()
    ]
    given = recipe.evaluation.data
    if not given:
        return corpora, [
            of_documents[c.name][1]
            if c.name in of_documents
            else HeldOut(c.name, c.source.kind, c.held_out)
            for c in corpora
        ]
    max_rows = recipe.evaluation.max_rows
    texts = {name: read_source(name, source) for name, source in given.items()}
    return corpora, [
        HeldOut(name, given[name].kind, rows.select(range(min(max_rows, len(rows)))))
        for name, rows in texts.items()
    ]


def add_teacher(
    recipe: Recipe, corpora: Sequence[Corpus], tokenizer: SafeTokenizer, base: Path
) -> list[Corpus]:
    """Add a teacher's vectors to what is trained on, if the recipe has one.

    Args:
        recipe: The recipe.
        corpora: The data.
        tokenizer: The model's tokenizer.
        base: The model's folder; it may be its own teacher.

    Returns:
        The corpora, with vectors of the rows that the run's steps draw.

    Raises:
        InputError: The teacher cannot be loaded, or vectors in the data cannot be used.
    """
    name = recipe.contrastive.teacher if recipe.contrastive else None
    if name is None:
        return list(corpora)
    teacher = _teacher(name, corpora, tokenizer, base, trains_in_bfloat16(recipe))
    drawn = rows_drawn(recipe, corpora) if teacher else {}
    return [
        add_teacher_vectors(corpus, teacher, tokenizer, drawn.get(corpus.name))
        for corpus in corpora
    ]


def _teacher(
    name: str, corpora: Sequence[Corpus], tokenizer: SafeTokenizer, base: Path, bfloat16: bool
) -> Any | None:
    """What gives vectors; None if they are in the data."""
    if name == "columns":
        return None
    if name != "base":
        return load_teacher(name, bfloat16)
    ids = (
        row for corpus in corpora for row in corpus.rows[_EMBEDDED.get(corpus.source.kind, "text")]
    )
    return WhitenedMeanPooling(base, [tokenizer.decode(row) for row in ids])


def _without_held_out(recipe: Recipe) -> Recipe:
    """For pairs of documents, of which sections have been held out already."""
    return dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, held_out=0.0)
    )
