"""Tries every family of language models that the tests know, and writes benchmarks/families.md;
prints the largest difference of each from its reference.

    python scripts/families.py [--check]

Each is a tiny random model of transformers' own code. Its vectors are compared with a reference
that shares no code with gem-rag: the plain model reads the text and one more position, whose
embedding and adapters are put there by hooks; and, for two special tokens and observers, under a
mask that is written out entry by entry. Generation must be the plain model's, bit for bit.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers.utils import logging

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import helpers  # noqa: E402
from families import EVERY_FAMILY, adapted_encoder, build_family, reference_vector  # noqa: E402

from gem_rag.core.adapter_targets import place_adapters  # noqa: E402
from gem_rag.core.encoder import GemEncoder, check_supported  # noqa: E402
from gem_rag.core.layout import Layout, Row  # noqa: E402
from gem_rag.engines.decoding import batch_kind  # noqa: E402
from gem_rag.errors import GemError  # noqa: E402

FILE = ROOT / "benchmarks" / "families.md"
TEXTS = [[5, 6, 7, 8, 9], [11, 12], list(range(13, 33))]
_AGREE = 1e-5
HEAD = f"""# Families

Made by `python scripts/families.py`, which says how: tiny random models on a CPU in float32.
"Agrees" means that no component of a unit vector differs from an independent reference by {_AGREE}.

Several special tokens, and observers (vectors of parts of a text), need a model that can be told
who attends to whom. Others have one special token after each whole text, which is all that most
uses need. Generation is in all of them the plain model's, bit for bit. A family that is not here is
tried when it is loaded, and refused with the reason if it does not follow the rule; `gem-rag info
--model M --check` says so beforehand.

| family | one special token | several, observers | adapters on | not on |
|---|---|---|---|---|
"""


def main(check: Annotated[bool, typer.Option(help="compare with the file")] = False) -> None:
    """Try all families; fail if one does not agree or, with --check, the file says otherwise."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    text = HEAD + "".join(f"| {' | '.join(_line(family))} |\n" for family in EVERY_FAMILY)
    if check and FILE.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{FILE} is not up to date: run python scripts/families.py")
    FILE.write_text(text, encoding="utf-8")


@torch.inference_mode()
def _line(family: str) -> tuple[str, ...]:
    model = build_family(family)
    placement = place_adapters(model)
    encoder = adapted_encoder(family)
    plain = build_family(family)
    plain.set_attn_implementation(encoder.model.config._attn_implementation)
    ids = torch.tensor([TEXTS[2]])
    batch_kind(encoder.model)
    if not torch.equal(encoder.model(ids).logits, plain(ids).logits):
        raise SystemExit(f"{family} does not generate what it did")
    one, several = _one(encoder, model), _several(family)
    print(f"{family}: {one:.1e}, {several if isinstance(several, str) else f'{several:.1e}'}")
    return (
        family,
        _agree(family, one),
        _agree(family, several),
        f"{len(placement.rows)} layers",
        placement.left_out(),
    )


def _one(encoder: GemEncoder, reference: Any) -> float:
    """Largest difference with one special token."""
    if reference._can_set_attn_implementation():
        reference.set_attn_implementation("eager")
    found = encoder.embed_in_halves([Layout.build([Row.whole(text) for text in TEXTS], 1)])
    expected = torch.stack([reference_vector(encoder, reference, text) for text in TEXTS])
    return float((found - expected).abs().max())


def _several(family: str) -> float | str:
    """Largest difference of outputs with two special tokens and an observer; or why not."""
    try:
        encoder = helpers.tiny_encoder(build_family(family), 2)
        check_supported(encoder)
    except GemError as error:
        return _reason(error)
    rows = [Row(TEXTS[0], ((0, 3), (0, 5))), Row(TEXTS[1], ((0, 2),))]
    found = encoder(Layout.build(rows, 2))
    reference = helpers.reference_copy(encoder.model)
    layout = Layout.build(rows, 2)
    hidden = helpers.reference_hidden_states(reference, encoder.special.embeddings, rows, "aligned")
    return float((found - encoder._pool(hidden, layout)).abs().max())


def _reason(error: GemError) -> str:
    said = str(error).partition(": it can have")[0]
    return f"no: {said.partition(' ')[2]}"


def _agree(family: str, found: float | str) -> str:
    if isinstance(found, str):
        return found
    if found > _AGREE:
        raise SystemExit(f"{family} differs from its reference by {found:.1g}")
    return "agrees"


if __name__ == "__main__":
    typer.run(main)
