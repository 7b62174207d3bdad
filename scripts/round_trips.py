"""A model in each of its forms, and how far its vectors differ: python scripts/round_trips.py MODEL

MODEL has one special token and adapters on its rows (scope `special`), like gem-smollm2-135m. It is
written as a plain folder without GEM, an adapter on that, a whole folder, for sentence-transformers
and for peft, and each is loaded again by the library that it is for. Printed are the size of each
folder and the largest difference of its vectors from the model's own; of the plain folder, that of
its logits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import gem_rag
from gem_rag.core.auto_model import load_language_model
from gem_rag.core.checkpoint import open_checkpoint, save_adapter, save_checkpoint
from gem_rag.interop.export import to_sentence_transformers
from gem_rag.interop.peft_export import to_peft, to_plain

TEXTS = ["How can I leave a loop early?", "The break statement ends the nearest loop.", "x"]
Vectors = Any  # float32 [texts, dim]


def main(model: str) -> None:
    checkpoint = open_checkpoint(model)
    special = checkpoint.adapter()
    assert special is not None
    with TemporaryDirectory() as work, gem_rag.load(model, dtype="float32") as gem:
        folder, wanted = Path(work), gem.embed_documents(TEXTS)

        def show(form: str, place: Path, embed: Callable[[], Vectors]) -> None:
            size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 1e6
            print(f"{form:22} {size:6.0f} MB  {np.abs(embed() - wanted).max():.1e}", flush=True)

        plain = to_plain(model, folder / "plain")
        print(f"logits without GEM: {_logit_change(gem, plain):.1e}")
        base = open_checkpoint(plain)
        save_adapter(folder / "adapter", base, checkpoint.config, special)
        show("adapter", folder / "adapter", lambda: _load(folder / "adapter", base=plain))
        whole = save_checkpoint(folder / "whole", plain, checkpoint.config, special).path
        show("whole", whole, lambda: _load(whole))
        exported = to_sentence_transformers(model, folder / "st")
        show("sentence-transformers", exported, lambda: _sentence_transformers(exported))
        tuned = to_peft(model, folder / "peft")
        show("peft", tuned, lambda: _peft(tuned, plain))


def _load(model: Path, **options: Any) -> Vectors:
    with gem_rag.load(model, dtype="float32", **options) as gem:
        return gem.embed_documents(TEXTS)


def _logit_change(gem: gem_rag.Gem, plain: Path) -> float:
    base = load_language_model(plain, dtype=torch.float32).eval()
    ids = torch.tensor([gem.tokenize(TEXTS[0])])
    with gem.language_model() as loaded, torch.inference_mode():
        return float((base(ids).logits - loaded(ids).logits).abs().max())


def _sentence_transformers(folder: Path) -> Vectors:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), trust_remote_code=True)
    return model.encode_document(TEXTS)


def _peft(folder: Path, plain: Path) -> Vectors:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    language_model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    token = language_model.get_input_embeddings().num_embeddings
    language_model.resize_token_embeddings(token + 1, mean_resizing=False)
    model = PeftModel.from_pretrained(language_model, str(folder)).eval()
    rows = []
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text).input_ids, token]])
        with torch.inference_mode():
            output = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        rows.append(torch.nn.functional.normalize(output, dim=-1).numpy())
    return np.stack(rows)


if __name__ == "__main__":
    main(sys.argv[1])
