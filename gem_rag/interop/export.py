"""Exports of a checkpoint to folders that other libraries load.

Knows nothing about training or the command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gem_rag import __version__
from gem_rag.core.checkpoint import Checkpoint, open_checkpoint, replace_folder
from gem_rag.core.config import CONFIG_NAME
from gem_rag.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from gem_rag.core.tokenizer import SafeTokenizer
    from gem_rag.engines.transformers_engine import TransformersEngine

# What sentence-transformers reads first, and writes anew, without our key, when it saves a model.
_CONFIG = "config_sentence_transformers.json"
_FILES = "gem_rag_files"
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
On a CPU it computes in float32; for the same here, add
`model_kwargs={{"dtype": "float32"}}`.

Nothing but sentence-transformers is needed: the tokenizer ends every text with the special token
`{token}`, whose output is the embedding. `max_seq_length` counts that token.

Names of special tokens inside a text are plain text here, as in gem-rag, because
`tokenizer_config.json` says `split_special_tokens`. Software that reads `tokenizer.json` alone
does not know that, and takes them for the tokens."""
_GEM_NOTES = """\
It computes them, since modules of sentence-transformers cannot: `pip install 'gem-rag[export]'`.

`trust_remote_code=True` is what sentence-transformers asks for wherever a module is not its own.
There is no code in this folder; the flag lets it import the installed gem-rag.

The model embeds and cannot be trained this way: train it with gem-rag and export it again. The
folder is a gem-rag checkpoint too."""


def to_sentence_transformers(model: str | Path, out: Path) -> Path:
    """Write a GEM-trained model as a folder that `SentenceTransformer(out)` loads; returns `out`.

    model: "gem-tiny" (bundled), a local folder, or a hub name.
    out: a new or empty folder, or an earlier export, which is replaced once the new one is whole.

    The folder gives the vectors of `Gem.embed_queries` and `Gem.embed_documents` through
    `encode_query` and `encode_document`. With one special token and no adapter GEM is causal
    attention over a text and one more token, which modules of sentence-transformers compute by
    themselves. Anything else is computed by `sentence_transformers_module.GemModule`, so gem-rag
    must be installed where the folder is loaded; and sentence-transformers, which imports no
    module but its own unasked, must be told `trust_remote_code=True`.

    Weights keep their type. Where that is half precision and the model scales its input rows
    (Gemma), the special token's row is rounded once more, and vectors agree to two digits or so.

    Raises InputError if there is no such model, if it has not been GEM-trained, or if `out` holds
    something else; GemError if the folder cannot be written.
    """
    _check_installed()
    _check_replaceable(out)
    checkpoint = open_checkpoint(model)
    if not checkpoint.trained:
        raise InputError(
            f"{checkpoint.name} has not been GEM-trained, so its embeddings are poor: train it "
            "first, then export it"
        )
    engine = _engine_for_standard_modules(checkpoint)
    with replace_folder(out) as folder:
        if engine is None:
            _save_gem_module(checkpoint, folder)
        else:
            _save_standard_modules(checkpoint, engine, folder)
    return out


def _check_installed() -> None:
    try:
        import sentence_transformers.base.modules  # noqa: F401
    except ImportError:
        raise InputError(
            "the export needs sentence-transformers 6: pip install 'gem-rag[export]'"
        ) from None


def _check_replaceable(out: Path) -> None:
    """Refuse to replace what is not an export, or has something beside it."""
    try:
        ours = set(json.loads((out / _CONFIG).read_text(encoding="utf-8"))[_FILES])
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    if out.exists() and not (out.is_dir() and ours.issuperset(_files(out))):
        raise InputError(
            f"{out} holds other things than an export of gem-rag: give a new folder, or clear it "
            "yourself"
        )


def _files(folder: Path) -> list[str]:
    """Everything below a folder but folders, by path in it."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def _engine_for_standard_modules(checkpoint: Checkpoint) -> TransformersEngine | None:
    """The model with weights as they are stored; None if standard modules cannot give its vectors.

    Raises InputError if it cannot be loaded.
    """
    from gem_rag.engines.transformers_engine import TransformersEngine

    path = checkpoint.path / "config.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): restore the file") from None
    # A model for texts and images comes with a processor, which is more than a tokenizer.
    if checkpoint.config.k > 1 or checkpoint.config.adapter is not None or "text_config" in state:
        return None
    dtype = state.get("dtype") or state.get("torch_dtype") or "float32"
    engine = TransformersEngine(checkpoint, device="cpu", dtype=dtype)
    # Standard modules cut a long text before what stands behind it (EOS, say), gem-rag after.
    return None if engine.text.encode(["a"])[0].special_tokens_mask[-1] else engine


def _save_standard_modules(
    checkpoint: Checkpoint, engine: TransformersEngine, folder: Path
) -> None:
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    from gem_rag.model import Gem

    name = checkpoint.config.tokens[0]
    gem = Gem(checkpoint, engine)
    tokenizer = _tokenizer_with(name, engine.text, gem.max_length + 1)
    encoder = engine._encoder
    _set_row(encoder.base, tokenizer.convert_tokens_to_ids(name), encoder.special.embeddings[0])
    encoder.base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pooling, normalize = Pooling(gem.dim, "lasttoken"), Normalize()
    for module, path in ((pooling, "1_Pooling"), (normalize, "2_Normalize")):
        (folder / path).mkdir()
        module.save(str(folder / path))
    modules = {"": Transformer, "1_Pooling": Pooling, "2_Normalize": Normalize}
    _describe(checkpoint, folder, modules, _STANDARD_NOTES.format(token=name))


def _save_gem_module(checkpoint: Checkpoint, folder: Path) -> None:
    from gem_rag.interop.sentence_transformers import GemModule

    GemModule(checkpoint.path).save(str(folder))
    _describe(checkpoint, folder, {"": GemModule}, _GEM_NOTES, needs_gem_rag=True)


def _tokenizer_with(name: str, text: SafeTokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that reads texts as gem-rag does and puts one new token behind each.

    Raises InputError if it has a token of that name.
    """
    import tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if text.plain.token_to_id(name) is not None:
        raise InputError(
            f"the model's tokenizer has a token {name!r} already: give its {CONFIG_NAME} another "
            "name under 'tokens'"
        )
    encoded = text.encode(["a"])[0]
    before = encoded.special_tokens_mask.index(0)
    backend = tokenizers.Tokenizer.from_str(text.plain.to_str())
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
    backend.post_processor = TemplateProcessing(
        single="before $A gem",
        pair="before $A $B gem",
        special_tokens=[
            {"id": "before", "ids": encoded.ids[:before], "tokens": encoded.tokens[:before]},
            {"id": "gem", "ids": [backend.token_to_id(name)], "tokens": [name]},
        ],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=text.tokenizer.pad_token or name,  # padding is masked, so any will do
        # Right padding keeps the positions of texts, which not every model takes from the mask.
        padding_side="right",
        truncation_side="right",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # names of special tokens in a text are text
    )


def _set_row(model: Any, token: int, row: Tensor) -> None:
    """Make `row` what the layers see of a token that the model may not have yet."""
    import torch

    if token >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(token + 1, mean_resizing=False)
    embedding = model.get_input_embeddings()
    embedding.weight[token] = 1
    scale = embedding(torch.tensor(token))  # some models (Gemma) scale what they look up
    embedding.weight[token] = row / scale


def _describe(
    checkpoint: Checkpoint,
    folder: Path,
    modules: dict[str, type],
    notes: str,
    needs_gem_rag: bool = False,
) -> None:
    """Write what sentence-transformers reads first, and a README.

    modules: the classes that embed, in order, by the folders they are saved in.
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
        _FILES: [*_files(folder), _CONFIG],
    }
    _write_json(folder / _CONFIG, config)


def _write_json(path: Path, state: Any) -> None:
    path.write_text(json.dumps(state, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
