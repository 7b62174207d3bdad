"""GGUF files, as Ollama and llama.cpp keep models, converted by transformers' reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gem_rag.errors import InputError

SUFFIX = ".gguf"
CONVERSION = 2  # counts up where the same file is written differently than before
_MAGIC = b"GGUF"


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model in a GGUF file as an ordinary folder: bfloat16 weights, the tokenizer and the
    chat template.

    Args:
        file: The model; quantized weights are dequantized.
        folder: An empty folder.

    Raises:
        InputError: The file cannot be read, or holds a model that transformers does not know.
    """
    with file.open("rb") as handle:
        if handle.read(4) != _MAGIC:
            raise InputError(f"{file} is not a GGUF file: download it again")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise InputError(f"{file} needs gguf: pip install 'gem-rag[gguf]'") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except Exception as error:  # the reader raises whatever a broken file leads to
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{file} cannot be read by transformers ({reason}): download it again if it is not "
            "whole, or give the model as a folder of safetensors"
        ) from error
    config = read.config
    if hasattr(config, "quantization_config"):  # the weights are not quantized any more
        del config.quantization_config
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict({name: weight.bfloat16() for name, weight in read.state_dict().items()})
    model.tie_weights()
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    if _begins_with_bos(file):
        _put_bos_first(tokenizer)
    tokenizer.save_pretrained(folder)


def _begins_with_bos(file: Path) -> bool:
    """Whether llama.cpp puts the beginning-of-sequence token before every text."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    if found := fields.get("tokenizer.ggml.add_bos_token"):
        return bool(found.contents())
    kind = fields.get("tokenizer.ggml.model")
    return kind is not None and kind.contents() == "llama"  # SentencePiece: its default


def _put_bos_first(tokenizer: Any) -> None:
    """Make the tokenizer do so too, which transformers' reader leaves out."""
    from tokenizers.processors import Sequence, TemplateProcessing

    bos, backend = tokenizer.bos_token_id, tokenizer.backend_tokenizer
    if bos is None or tokenizer("a").input_ids[:1] == [bos]:
        return
    before = TemplateProcessing(
        single="bos $A",
        pair="bos $A $B",
        special_tokens=[{"id": "bos", "ids": [bos], "tokens": [tokenizer.bos_token]}],
    )
    there = [backend.post_processor] if backend.post_processor else []
    backend.post_processor = Sequence([*there, before])
