"""The model card of a trained checkpoint: README.md, with the metadata that the hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gem_rag import __version__
from gem_rag._utils.files import write_atomically
from gem_rag.core.base_model import BaseModel
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.training.recipe import Recipe
from gem_rag.training.training_report import Report

_CARD = """\
# {name}

{base} with text embeddings (the GEM method, arXiv 2506.04344), trained by gem-rag {version} in the
scope `{scope}`{generation}.

```python
import gem_rag

gem = gem_rag.load("{name}")
vectors = gem.embed_documents(["..."])
```

An embedding has {dim} numbers, and is read from {k} special token{s}{layers}. It holds up to
{max_length} tokens of a text.

## Data and recipe

{sources}

{steps} steps of {batch} rows, learning rate {rate:g}. The whole recipe is in
`report/report.json`, if a report was written.

## Scores

{scores}
"""


def write_card(saved: Checkpoint, recipe: Recipe, dim: int, report: Report | None) -> None:
    """Write a checkpoint's README.md.

    Args:
        saved: The trained model.
        recipe: How it was trained.
        dim: Length of an embedding.
        report: What was measured, if anything was.
    """
    folder, config = Path(saved.name), saved.config
    about = BaseModel.read(folder)
    base = about.name if about else config.base_model or "a language model"
    metadata: dict[str, Any] = {
        "library_name": "gem-rag",
        "pipeline_tag": "feature-extraction",
        "tags": ["gem", "embeddings", "sentence-similarity", "text-generation"],
    }
    if about:
        metadata |= {"base_model": base, "base_model_relation": "adapter"}
    text = _CARD.format(
        name=folder.name,
        base=base,
        version=__version__,
        scope=config.scope,
        generation="; what it generates is the base's, bit for bit"
        if config.scope == "special"
        else "",
        dim=dim,
        k=config.k,
        s="s" if config.k > 1 else "",
        layers=f", after {config.layers} layers" if config.layers else "",
        max_length=config.max_length,
        sources="\n".join(
            f"- `{name}`: {source.kind}, weight {source.weight:g}"
            for name, source in recipe.data.items()
        ),
        steps=recipe.schedule.steps,
        batch=recipe.schedule.batch,
        rate=recipe.schedule.learning_rate,
        scores=_scores(report),
    )
    front = yaml.safe_dump(metadata, sort_keys=False)
    write_atomically(folder / "README.md", f"---\n{front}---\n{text}")


def _scores(report: Report | None) -> str:
    """A table of retrieval on what was held out."""
    if report is None or not report.retrieval:
        return "Nothing was measured."
    lines = ["| held-out data | search | R@1 | R@10 | MRR |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {way} | {f.recall_1:.3f} | {f.recall_10:.3f} | {f.mrr:.3f} |"
        for name, ways in report.retrieval.items()
        for way, f in ways.items()
    ]
    return "\n".join(lines)
