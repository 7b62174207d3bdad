"""All of a recipe's data: what is trained on, and what is measured on."""

from __future__ import annotations

from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.training.corpus import Corpus, HeldOut, load_corpus
from gem_rag.training.recipe import Recipe
from gem_rag.training.sources import read_source
from gem_rag.training.teacher import add_teacher_vectors, load_teacher


def load_data(recipe: Recipe, tokenizer: SafeTokenizer) -> tuple[list[Corpus], list[HeldOut]]:
    """Load all of a recipe's sources.

    Args:
        recipe: The recipe, with the paths of its data.
        tokenizer: The model's tokenizer.

    Returns:
        Data to train on, and data to measure on.

    Raises:
        InputError: Something cannot be used; the message names the source and the row.
    """
    corpora = [load_corpus(n, s, recipe, tokenizer) for n, s in recipe.data.items()]
    name = recipe.contrastive.teacher if recipe.contrastive else None
    if name:
        teacher = None if name == "columns" else load_teacher(name)
        corpora = [add_teacher_vectors(corpus, teacher, tokenizer) for corpus in corpora]
    given = recipe.evaluation.data
    if not given:
        return corpora, [HeldOut(c.name, c.source.kind, c.held_out) for c in corpora]
    max_rows = recipe.evaluation.max_rows
    texts = {name: read_source(name, source) for name, source in given.items()}
    return corpora, [
        HeldOut(name, given[name].kind, rows.select(range(min(max_rows, len(rows)))))
        for name, rows in texts.items()
    ]
