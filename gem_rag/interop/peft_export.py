"""Exports a checkpoint for plain peft, and a checkpoint's language model without GEM.

With one special token, GEM is an activated LoRA (arXiv 2504.12397): adapters act on the tokens from
an invocation token on, and the special token, the last of a text, is that token. Its input
embedding is a trained row of the embedding table.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gem_rag._utils.files import replace_folder
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint
from gem_rag.core.composed import NOT_COPIED
from gem_rag.core.config import CONFIG_NAME
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError
from gem_rag.interop.export import set_input_embedding

if TYPE_CHECKING:
    from torch import Tensor

_README = """\
---
base_model: {base}
library_name: peft
pipeline_tag: feature-extraction
tags: [alora, embeddings, sentence-similarity]
---
# {name}, for peft

A GEM model (arXiv 2506.04344), written by `gem-rag export --to peft`: an activated LoRA and one
trained row of the embedding table. The vector of a text is the output of the token `{token}` behind
it, divided by its length.

```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)  # has {token}
model = AutoModelForCausalLM.from_pretrained("{base}")
model.resize_token_embeddings({rows}, mean_resizing=False)
model = PeftModel.from_pretrained(model, folder)
ids = tokenizer("{prompt}" + text, return_tensors="pt").input_ids
ids = torch.cat([ids, torch.tensor([[{token_id}]])], dim=1)
output = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, -1]
vector = torch.nn.functional.normalize(output, dim=-1)
```

Prompts: {prompts}.
"""


def to_peft(model: str | Path, out: Path) -> Path:
    """Export a model of the scope `special` to a folder that plain peft loads on its base.

    Args:
        model: An installed model's name, a local folder, or a hub name.
        out: A new folder.

    Returns:
        `out`.

    Raises:
        InputError: `out` exists; or the model is not one that peft can compute: it has one special
            token, adapters on it, and is read after the last layer.
        GemError: The folder cannot be written.
    """
    checkpoint = open_checkpoint(model)
    _check_computable(checkpoint)
    _check_new(out)
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config, special = checkpoint.config, checkpoint.adapter()
    assert config.adapter is not None
    assert special is not None
    language_model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype="auto")
    token_id = language_model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        set_input_embedding(language_model, token_id, special["special_embeddings"][0])
    adapted = get_peft_model(
        language_model,
        LoraConfig(
            r=config.adapter.rank,
            lora_alpha=config.adapter.alpha,
            target_modules=list(config.adapter.targets),
            alora_invocation_tokens=[token_id],
            trainable_token_indices=[token_id],
            task_type="CAUSAL_LM",
        ),
    )
    with torch.no_grad():
        _copy_adapters(adapted, special)
    with replace_folder(out) as folder:
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        _set_base(folder, checkpoint)
        _save_tokenizer(checkpoint, token_id, folder)
        _write_readme(checkpoint, token_id, folder)
    return out


def to_plain(model: str | Path, out: Path) -> Path:
    """Write a checkpoint's language model alone, without special tokens, as an ordinary folder.

    Args:
        model: An installed model's name, a local folder, a GGUF file, or a hub name.
        out: A new folder.

    Returns:
        `out`.

    Raises:
        InputError: There is no such model, or `out` exists.
        GemError: The folder cannot be written.
    """
    checkpoint = open_checkpoint(model)
    _check_new(out)
    with replace_folder(out) as folder:
        for file in checkpoint.path.iterdir():
            if file.is_file() and file.name not in NOT_COPIED:
                shutil.copyfile(file, folder / file.name)
    return out


def _check_computable(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    reasons = {
        "it has not been GEM-trained": not checkpoint.trained,
        f"it has {config.k} special tokens": config.k > 1,
        f"it is read after {config.layers} layers": config.layers is not None,
        "it has no adapter": checkpoint.trained and config.adapter is None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(
                f"peft cannot compute the vectors of {checkpoint.name}, because {reason}: export "
                "models with one special token and an adapter (scope special), read after all "
                "layers"
            )


def _check_new(out: Path) -> None:
    if out.exists():
        raise InputError(f"{out} exists already: choose another name, or remove it")


def _copy_adapters(adapted: Any, special: dict[str, Tensor]) -> None:
    """Copy the adapters, which have peft's names; the trained row begins as the table's."""
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.copy_(special[name.replace(".default.", ".")])


def _set_base(folder: Path, checkpoint: Checkpoint) -> None:
    """Name the base where peft looks for it."""
    file = folder / "adapter_config.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["base_model_name_or_path"] = _base_name(checkpoint)
    file.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _base_name(checkpoint: Checkpoint) -> str:
    return checkpoint.base.name if checkpoint.base else str(checkpoint.path)


def _save_tokenizer(checkpoint: Checkpoint, token_id: int, folder: Path) -> None:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    own = SafeTokenizer.from_folder(checkpoint.path)
    backend = tokenizers.Tokenizer.from_str(own.plain_backend.to_str())
    token = checkpoint.config.tokens[0]
    size = backend.get_vocab_size(with_added_tokens=True)
    if backend.token_to_id(token) is not None:
        raise InputError(
            f"the model's tokenizer has a token {token!r} already: give its {CONFIG_NAME} another "
            "name under 'tokens'"
        )
    # Rows of the table behind the vocabulary, which the new token must come after.
    fill = [f"<|unused_{n}|>" for n in range(size, token_id)]
    backend.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in (*fill, token)]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)


def _write_readme(checkpoint: Checkpoint, token_id: int, folder: Path) -> None:
    config = checkpoint.config
    prompts = ", ".join(f"{use} {text!r}" for use, text in config.prompts.items())
    text = _README.format(
        base=_base_name(checkpoint),
        name=Path(checkpoint.name).name,
        token=config.tokens[0],
        token_id=token_id,
        rows=token_id + 1,
        prompt=config.prompts["document"],
        prompts=prompts,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
