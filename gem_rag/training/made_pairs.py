"""Data of kind "documents": pairs are made of a folder first, by the model that is trained then."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import datasets

from gem_rag.core.checkpoint import Checkpoint
from gem_rag.errors import InputError
from gem_rag.pairs.make import held_out_file, make_pairs
from gem_rag.pairs.pair import read_pairs
from gem_rag.pairs.settings import PairSettings
from gem_rag.training.corpus import HeldOut
from gem_rag.training.recipe import Recipe, Source


@dataclass(frozen=True)
class PairMaker:
    """Makes the pairs of a run.

    Attributes:
        base: The model that the run starts from.
        folder: The run's folder, where pairs are kept.
        resume: Whether pairs that have been made are used again.
        progress: Whether to show progress bars.
    """

    base: Checkpoint
    folder: Path
    resume: bool = False
    progress: bool = False

    def make(self, name: str, source: Source, recipe: Recipe) -> tuple[Source, HeldOut]:
        """Make pairs of a source of documents.

        Args:
            name: The source's name in the recipe.
            source: The source.
            recipe: The recipe; its share of held-out rows is that of held-out sections.

        Returns:
            A source of pairs in its place, and headings to measure on with the texts below them.

        Raises:
            InputError: The documents cannot be used; the message names the source.
        """
        file = self.folder / f"{name}.pairs.jsonl"
        if not self.resume:
            file.unlink(missing_ok=True)
        if not file.exists():
            settings = source.pairs or PairSettings()
            settings = dataclasses.replace(
                settings,
                negatives=source.negatives,
                passage_tokens=min(settings.passage_tokens, recipe.max_length),
                context_tokens=min(settings.context_tokens, recipe.max_length),
                held_out=recipe.evaluation.held_out,
                seed=recipe.seed,
            )
            try:
                make_pairs(
                    [str(source.path)], self.base.name, file, settings, progress=self.progress
                )
            except InputError as error:
                raise InputError(f"data {name!r}: {error}") from None
        made = dataclasses.replace(source, kind="pairs", path=str(file), pairs=None)
        return made, _held_out(name, held_out_file(file), recipe.evaluation.max_rows)


def _held_out(name: str, file: Path, max_rows: int) -> HeldOut:
    pairs = read_pairs(file) if file.exists() and file.stat().st_size else []
    asked = [pair for pair in pairs if pair.query][:max_rows]
    others = dict.fromkeys(pair.document for pair in pairs)
    for pair in asked:
        others.pop(pair.document, None)
    rows = datasets.Dataset.from_dict(
        {"query": [p.query for p in asked], "document": [p.document for p in asked]}
    )
    return HeldOut(name, "pairs", rows, tuple(others))
