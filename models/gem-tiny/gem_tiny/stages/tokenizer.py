"""Stage `tokenizer`: byte-level BPE, trained on the corpus."""

from __future__ import annotations

from gem_tiny.stages.options import WORK, Work

_UNUSED_IDS = 16  # of the model's vocabulary


def tokenizer(work: Work = WORK, size: int = 8192) -> None:
    """Train the tokenizer on the texts that are not held out."""
    from gem_tiny.pretraining import ModelShape
    from gem_tiny.texts import load_texts
    from gem_tiny.tokenizer_training import train_tokenizer

    texts = (text.document for text in load_texts(work / "corpus.jsonl") if not text.held_out)
    trained = train_tokenizer(texts, size - _UNUSED_IDS, ModelShape.context)
    trained.save_pretrained(work / "tokenizer")
