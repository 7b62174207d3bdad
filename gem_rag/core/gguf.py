"""GGUF files, as Ollama and llama.cpp keep models, converted by transformers' reader."""

from __future__ import annotations

from pathlib import Path

from gem_rag.errors import InputError

SUFFIX = ".gguf"
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
    tokenizer.save_pretrained(folder)
