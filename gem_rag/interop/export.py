"""Exports a checkpoint to a folder that sentence-transformers loads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gem_rag import __version__
from gem_rag._utils.files import replace_folder
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint
from gem_rag.core.config import CONFIG_NAME
from gem_rag.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from gem_rag.core.encoder import GemEncoder
    from gem_rag.core.tokenizer import SafeTokenizer
    from gem_rag.engines.transformers_engine import TransformersEngine

# sentence-transformers reads this file first; saving a model again rewrites it without our key.
CONFIG_FILE = "config_sentence_transformers.json"
_FILES_KEY = "gem_rag_files"
_README = """\
---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction]
---
# {name}, for sentence-transformers

A GEM model (arXiv 2506.04344), written by `gem-rag export --to sentence-transformers`.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder"{flag})
queries = model.encode_query(["..."])
documents = model.encode_document(["..."])
```

The vectors are those of gem-rag.
{notes}
"""
_STANDARD_NOTES = """\
On a CPU, gem-rag computes in float32; to do the same here, add
`model_kwargs={{"dtype": "float32"}}`.

Only sentence-transformers is needed: the tokenizer ends every text with the special token
`{token}`, whose output is the embedding. `max_seq_length` counts that token.

Names of special tokens inside a text are plain text here, as in gem-rag, because
`tokenizer_config.json` sets `split_special_tokens`. Software that reads only `tokenizer.json`
does not see that setting, and reads them as the tokens."""
_GEM_NOTES = """\
gem-rag computes them, because sentence-transformers' own modules cannot:
`pip install 'gem-rag[export]'`.

sentence-transformers requires `trust_remote_code=True` for every module that is not its own. There
is no code in this folder; the flag lets it import the installed gem-rag.

The model embeds, but cannot be trained this way: train it with gem-rag and export it again. The
folder is also a gem-rag checkpoint."""


def to_sentence_transformers(model: str | Path, out: Path) -> Path:
    """Export a GEM-trained model to a folder that `SentenceTransformer(out)` loads.

    There `encode_query` and `encode_document` give the vectors of `Gem.embed_queries` and
    `Gem.embed_documents`. With one special token and no adapter, GEM is causal attention over a
    text and one more token, which the standard modules of sentence-transformers can compute.
    Everything else is computed by `GemModule`, so gem-rag must be installed where the folder is
    loaded, and sentence-transformers, which by default imports only its own modules, needs
    `trust_remote_code=True`.

    Weights keep their dtype. If it is a 16-bit one and the model scales its input embeddings (as
    Gemma does), the special token's embedding is rounded once more, and vectors agree to about two
    digits.

    Args:
        model: An installed model's name, a local folder, a GGUF file, or a hub name.
        out: A new or empty folder, or an earlier export, which is replaced atomically.

    Returns:
        `out`.

    Raises:
        InputError: There is no such model, it has not been GEM-trained, its prompts have control
            tokens, `out` holds something else, or sentence-transformers is not installed.
        GemError: The folder cannot be written.
    """
    _check_installed()
    _check_replaceable(out)
    checkpoint = open_checkpoint(model)
    if not checkpoint.trained:
        raise InputError(
            f"{checkpoint.name} has not been GEM-trained, so its embeddings are poor: train it "
            "first, then export it"
        )
    _check_prompts(checkpoint)
    engine = _engine_for_standard_modules(checkpoint)
    with replace_folder(out) as folder:
        if engine is None:
            _save_gem_module(checkpoint, folder)
        else:
            _save_standard_modules(checkpoint, engine, folder)
    return out


def _check_prompts(checkpoint: Checkpoint) -> None:
    """Refuse prompts of which sentence-transformers would not make the same tokens."""
    from gem_rag.core.tokenizer import SafeTokenizer

    tokenizer = SafeTokenizer.from_folder(checkpoint.path)
    for use, prompt in checkpoint.config.prompts.items():
        if tokenizer.has_control_tokens(prompt):
            raise InputError(
                f"the {use} prompt of {checkpoint.name} has control tokens of its chat template, "
                "and sentence-transformers joins prompts and texts before it tokenizes them: "
                "export a model that was trained without answer_head"
            )


def _check_installed() -> None:
    try:
        import sentence_transformers.base.modules  # noqa: F401
    except ImportError:
        raise InputError(
            "the export needs sentence-transformers 6: pip install 'gem-rag[export]'"
        ) from None


def _check_replaceable(out: Path) -> None:
    """Refuse to replace a folder that is not an export, or holds anything besides one."""
    try:
        exported = set(json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))[_FILES_KEY])
    except (OSError, ValueError, KeyError, TypeError):
        exported = set()
    if out.exists() and not (out.is_dir() and exported.issuperset(_list_files(out))):
        raise InputError(
            f"{out} holds other things than an export of gem-rag: give a new folder, or clear it "
            "yourself"
        )


def _list_files(folder: Path) -> list[str]:
    """Relative paths of all files below a folder, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def _engine_for_standard_modules(checkpoint: Checkpoint) -> TransformersEngine | None:
    """The model in its stored dtype, or None if standard modules cannot give its vectors.

    Raises:
        InputError: The model cannot be loaded.
    """
    from gem_rag.engines.transformers_engine import TransformersEngine

    path = checkpoint.path / "config.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): restore the file") from None
    # Multimodal models have a processor, and standard modules would need it too.
    if checkpoint.config.k > 1 or checkpoint.config.adapter is not None or "text_config" in state:
        return None
    dtype = state.get("dtype") or state.get("torch_dtype") or "float32"
    engine = TransformersEngine(checkpoint, device="cpu", dtype=dtype)
    # Standard modules truncate a long text before they append an EOS token, gem-rag after.
    appends_token = engine.tokenizer.encode(["a"])[0].special_tokens_mask[-1]
    return None if appends_token else engine


def _save_standard_modules(
    checkpoint: Checkpoint, engine: TransformersEngine, folder: Path
) -> None:
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    from gem_rag.model import Gem

    token = checkpoint.config.tokens[0]
    gem = Gem(checkpoint, engine)
    tokenizer = _append_token(engine.tokenizer, token, gem.max_length + 1)
    encoder = engine.encoder
    token_id = tokenizer.convert_tokens_to_ids(token)
    model = _model_to_export(encoder)
    set_input_embedding(model, token_id, encoder.special.embeddings[0])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pooling, normalize = Pooling(gem.dim, "lasttoken"), Normalize()
    for module, path in ((pooling, "1_Pooling"), (normalize, "2_Normalize")):
        (folder / path).mkdir()
        module.save(str(folder / path))
    modules = {"": Transformer, "1_Pooling": Pooling, "2_Normalize": Normalize}
    _write_metadata(checkpoint, folder, modules, _STANDARD_NOTES.format(token=token))


def _model_to_export(encoder: GemEncoder) -> Any:
    """The model, or of the layers that embeddings need one whose configuration says so."""
    model = encoder.read_out
    if model is not encoder.base:
        model.config = config = copy.deepcopy(model.config)
        config.num_hidden_layers = encoder.layers
        for name in ("layer_types", "mlp_layer_types"):  # one for each layer
            if getattr(config, name, None):
                setattr(config, name, getattr(config, name)[: encoder.layers])
    return model


def _save_gem_module(checkpoint: Checkpoint, folder: Path) -> None:
    from gem_rag.interop.sentence_transformers import GemModule

    GemModule(checkpoint.path).save(str(folder))
    _write_metadata(checkpoint, folder, {"": GemModule}, _GEM_NOTES, needs_gem_rag=True)


def _append_token(
    safe_tokenizer: SafeTokenizer, token: str, max_length: int
) -> PreTrainedTokenizerFast:
    """A tokenizer that reads texts as gem-rag does and appends one new token to each.

    Raises:
        InputError: The tokenizer already has a token of that name.
    """
    import tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    plain_backend = safe_tokenizer.plain_backend
    if plain_backend.token_to_id(token) is not None:
        raise InputError(
            f"the model's tokenizer has a token {token!r} already: give its {CONFIG_NAME} another "
            "name under 'tokens'"
        )
    encoding = safe_tokenizer.encode(["a"])[0]
    prefix = encoding.special_tokens_mask.index(0)
    backend = tokenizers.Tokenizer.from_str(plain_backend.to_str())
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
    backend.post_processor = TemplateProcessing(
        single="before $A gem",
        pair="before $A $B gem",
        special_tokens=[
            {"id": "before", "ids": encoding.ids[:prefix], "tokens": encoding.tokens[:prefix]},
            {"id": "gem", "ids": [backend.token_to_id(token)], "tokens": [token]},
        ],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        # Padding is masked, so any token will do.
        pad_token=safe_tokenizer.hf_tokenizer.pad_token or token,
        # Right padding keeps the positions of texts, which not every model takes from the mask.
        padding_side="right",
        truncation_side="right",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # names of special tokens in a text are plain text
    )


def set_input_embedding(model: Any, token_id: int, embedding: Tensor) -> None:
    """Set a token's input embedding, as the first layer sees it; the token may be new."""
    import torch

    if token_id >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(token_id + 1, mean_resizing=False)
    table = model.get_input_embeddings()
    table.weight[token_id] = 1
    scale = table(torch.tensor(token_id))  # some models (Gemma) scale what they look up
    table.weight[token_id] = embedding / scale


def _write_metadata(
    checkpoint: Checkpoint,
    folder: Path,
    modules: dict[str, type],
    notes: str,
    needs_gem_rag: bool = False,
) -> None:
    """Write the files that tell sentence-transformers what to load, and a README.

    Args:
        checkpoint: What is exported.
        folder: The export.
        modules: Classes of the modules, in order, by the subfolder that each is saved in.
        notes: The README's last part.
        needs_gem_rag: Whether one of the modules is gem-rag's.
    """
    import sentence_transformers

    steps = [
        {"idx": i, "name": str(i), "path": path, "type": f"{module.__module__}.{module.__name__}"}
        for i, (path, module) in enumerate(modules.items())
    ]
    _write_json(folder / "modules.json", steps)
    readme = _README.format(
        name=Path(checkpoint.name).name,
        flag=", trust_remote_code=True" if needs_gem_rag else "",
        notes=notes,
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    config = {
        "__version__": {
            "gem_rag": __version__,
            "sentence_transformers": sentence_transformers.__version__,
        },
        "model_type": "SentenceTransformer",
        "prompts": checkpoint.config.prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "requirements": {"gem-rag": f">={__version__}"} if needs_gem_rag else {},
        _FILES_KEY: [*_list_files(folder), CONFIG_FILE],
    }
    _write_json(folder / CONFIG_FILE, config)


def _write_json(path: Path, state: Any) -> None:
    path.write_text(json.dumps(state, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
