"""Checkpoint folders: finding one by name, reading, writing atomically, and the fingerprint.

A whole checkpoint is an ordinary Hugging Face folder plus `gem_config.json` and
`gem/adapter.safetensors` (the special tokens' input embeddings and, in the `special` scope, their
adapters). An adapter-only one has those two, and `adapter_config.json` names its base model.
Weights are read from safetensors only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from gem_rag._utils.files import replace_folder
from gem_rag.core.base_model import BaseModel
from gem_rag.core.composed import LORA, NOT_COPIED
from gem_rag.core.config import CONFIG_NAME, GemConfig
from gem_rag.core.locate import find_model
from gem_rag.core.tensors import hash_tensors, weights_hash
from gem_rag.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# In a folder of its own: vLLM takes every *.safetensors beside config.json for the model's weights.
ADAPTER_NAME = "gem/adapter.safetensors"
# Keys of config.json that say how a file was written, not what the model computes.
_NEUTRAL_KEYS = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"}
# Which keys of each file the fingerprint reads.
_HASHED_KEYS: dict[str, Callable[[str], bool]] = {
    "config.json": lambda key: key not in _NEUTRAL_KEYS,
    "tokenizer.json": lambda key: True,
    "tokenizer_config.json": lambda key: key.startswith("add_"),  # add_bos_token, ...
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that holds a model and whose configuration is valid.

    Attributes:
        name: The installed or hub name it was opened by, or its absolute path.
        path: The folder.
        config: Its GEM configuration; the default one for a plain language model.
        base: What an adapter-only checkpoint runs on; None for a whole one. The folder then holds
            links to both.
    """

    name: str
    path: Path
    config: GemConfig
    base: BaseModel | None = None

    @property
    def trained(self) -> bool:
        """Whether the model has been GEM-trained."""
        return self.config.scope is not None

    def adapter(self) -> dict[str, Tensor] | None:
        """The special tokens' weights by name, or None for a model that has none."""
        from safetensors.torch import load_file

        path = self.path / ADAPTER_NAME
        if path.exists():
            try:
                return load_file(path)
            except SafetensorError as error:
                raise InputError(f"{path} cannot be read ({error}): copy it whole") from None
        if self.trained:
            raise InputError(f"{self.path} has {CONFIG_NAME} but no {ADAPTER_NAME}: copy it whole")
        return None

    def with_k(self, k: int) -> Checkpoint:
        """The same checkpoint with k special tokens; only an untrained one may choose its k."""
        if k == self.config.k:
            return self
        if self.trained:
            raise InputError(
                f"{self.name} was GEM-trained with k = {self.config.k}, not {k}: leave k out"
            )
        return replace(self, config=replace(self.config, k=k, tokens=()))

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and modification time of every file: changes when the folder does."""
        stats = [(name, (self.path / name).stat()) for name in self.files()]
        return tuple((name, s.st_size, s.st_mtime_ns) for name, s in stats)

    def files(self) -> list[str]:
        """Its files, relative to the folder."""
        names = [*(file.name for file in self.path.iterdir()), ADAPTER_NAME]
        return sorted(name for name in names if (self.path / name).is_file())

    def fingerprint(self) -> str:
        """64 hexadecimal digits that identify the vectors this checkpoint gives.

        A hash of every weight (however they are sharded), the adapter, the tokenizer and what
        changes vectors in config.json and gem_config.json; never of the path. It is computed once.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file, counts in _HASHED_KEYS.items():
            path = self.path / file
            state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            kept = {key: value for key, value in state.items() if counts(key)}
            digest.update(json.dumps(kept, sort_keys=True).encode())
        digest.update(json.dumps(self.config.fingerprint_state(), sort_keys=True).encode())
        files = [self.path / name for name in self.files() if name.endswith(".safetensors")]
        hash_tensors(files, digest)
        return digest.hexdigest()


def open_checkpoint(
    model: str | Path,
    revision: str | None = None,
    cache_folder: str | Path | None = None,
    base: str | Path | None = None,
) -> Checkpoint:
    """Find a model and check that the folder holds one.

    Args:
        model: An installed model's name, a local folder, a GGUF file or a hub name.
        revision: Revision of a hub model.
        cache_folder: Where hub models are kept, if not in the hub's default cache.
        base: What an adapter-only checkpoint runs on, likewise; default what it names.

    Raises:
        InputError: There is no such model, or the folder holds none; the message says what to do.
    """
    name, path, base_model = find_model(model, base, revision, cache_folder)
    for file, kind in {
        "config.json": "model configuration",
        "tokenizer.json": "fast tokenizer",
    }.items():
        if not (path / file).is_file():
            raise InputError(
                f"{path} is not a model folder: it has no {file} ({kind}); give a folder saved "
                "with save_pretrained, a GGUF file, a hub name or 'gem-tiny'"
            )
    _check_architecture(path)
    if not any(path.glob("*.safetensors")):
        raise InputError(
            f"{path} has no *.safetensors weights: save the model with safe serialization "
            "(pickled weights are not read)"
        )
    return Checkpoint(name, path, GemConfig.read(path) or GemConfig(), base_model)


def _check_architecture(folder: Path) -> None:
    """Raise InputError unless transformers has the model's architecture as a language model: a
    folder's own code is never run, nor is anybody asked whether it should be."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read ({error}): copy it whole") from None
    from transformers import CONFIG_MAPPING, __version__

    from gem_rag.core.auto_model import has_language_model

    if kind in CONFIG_MAPPING:
        if has_language_model(CONFIG_MAPPING[kind]):
            return
        raise InputError(
            f"{file} has model type {kind!r}, which is no causal language model in transformers: "
            "choose a decoder-only language model, or the text model that it is made of"
        )
    if kind is None:
        raise InputError(f"{file} cannot be read: it names no model_type; copy it whole")
    if "auto_map" in config:
        raise InputError(
            f"{file} names code of the model's own (auto_map), which is never run: choose a model "
            "that transformers itself has"
        )
    raise InputError(
        f"{file} has model type {kind!r}, which transformers {__version__} does not know: upgrade "
        "transformers, or choose another model"
    )


def save_checkpoint(
    folder: Path,
    base: Path,
    config: GemConfig,
    special: dict[str, Tensor],
    save_weights: Callable[[Path], None] | None = None,
) -> Checkpoint:
    """Write a whole checkpoint: a base model's files, the special tokens, and new weights if any.

    The folder appears whole or not at all; an existing one is replaced only once the new one is
    complete.

    Args:
        folder: Where to write.
        base: The base model's folder.
        config: The GEM configuration.
        special: The special tokens' weights (`SpecialTokens.tensors`).
        save_weights: Writes the language model's weights and config.json; without it the base's
            are copied byte for byte, and generation is the base's.

    Returns:
        The checkpoint.

    Raises:
        GemError: The folder could not be written.
    """
    with replace_folder(folder) as new:
        for file in base.iterdir():
            weights = ".safetensors" in file.name  # and the index of their shards
            if file.is_file() and file.name not in NOT_COPIED and not (save_weights and weights):
                shutil.copyfile(file, new / file.name)
        if save_weights:
            save_weights(new)
        _save_special(new, config, special)
    return open_checkpoint(folder)


def save_adapter(
    folder: Path,
    base: Checkpoint,
    config: GemConfig,
    special: dict[str, Tensor],
    save_lora: Callable[[Path], None] | None = None,
    dtype: str | None = None,
) -> Checkpoint:
    """Write an adapter-only checkpoint, which runs on its base wherever that is found.

    Args:
        folder: Where to write; as of `save_checkpoint`.
        base: What was trained; if that is itself an adapter, its base is named.
        config: The GEM configuration.
        special: The special tokens' weights.
        save_lora: Writes peft's adapter into a folder, in the scope `lora`.
        dtype: Of the weights that it is merged into.

    Returns:
        The checkpoint.

    Raises:
        GemError: The folder could not be written.
    """
    own = base.base or BaseModel(base.name)
    with replace_folder(folder) as new:
        if save_lora:
            save_lora(new / LORA)
        _save_special(new, config, special)
        replace(own, weights=weights_hash(base.path), dtype=dtype).save(new)
    return open_checkpoint(folder, base=None if base.base else base.path)


def _save_special(folder: Path, config: GemConfig, special: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    config.save(folder)
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in special.items()}
    (folder / ADAPTER_NAME).parent.mkdir()
    save_file(contiguous, folder / ADAPTER_NAME, metadata={"format": "pt"})
    # It is written for its owner only.
    shutil.copymode(folder / CONFIG_NAME, folder / ADAPTER_NAME)
