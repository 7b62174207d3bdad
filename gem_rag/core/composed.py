"""Ordinary folders made of what is none: an adapter beside its base model, a GGUF file.

They lie in the cache, `GEM_RAG_CACHE` or `gem-rag` in the hub's home folder. What an adapter's
folder is made of is linked, not copied; everything that reads models reads it like any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

from gem_rag._utils.files import replace_folder, write_atomically
from gem_rag.core.base_model import FILE, BaseModel
from gem_rag.core.gguf import CONVERSION, convert_gguf
from gem_rag.core.tensors import weights_hash

LORA = "lora"  # folder of peft's adapter in an adapter-only checkpoint of the scope lora
NOT_COPIED = {FILE, "README.md", "gem_config.json"}  # of a base model
_told: set[tuple[Path, str]] = set()


def cache_folder() -> Path:
    """Where composed and converted models are kept."""
    from huggingface_hub import constants

    return Path(os.environ.get("GEM_RAG_CACHE") or Path(constants.HF_HOME) / "gem-rag")


def open_gguf(file: Path) -> Path:
    """The folder of a GGUF file's model, converted when it is first met."""
    folder = cache_folder() / "gguf" / f"{_key(_stamps([file]))}-{CONVERSION}"
    if not folder.exists():
        with replace_folder(folder) as new:
            convert_gguf(file, new)
    return folder


def compose(adapter: Path, base: Path, about: BaseModel) -> Path:
    """The folder of an adapter and the base model that it runs on.

    Args:
        adapter: Of an adapter-only checkpoint.
        base: Of the base model.
        about: What the adapter says about its base; a warning is given, once, if the weights are
            not those it was trained on.

    Returns:
        The folder.
    """
    folder = cache_folder() / "composed" / _key(_stamps([*_files(adapter), *_files(base)]))
    if not folder.exists():
        with replace_folder(folder) as new:
            _link(base, new)
            _link(adapter, new, keep="gem_config.json")
            if (adapter / LORA).is_dir():
                _merge(base, adapter / LORA, new, about.dtype or "float32")
    file = folder.with_suffix(".sha256")  # of the base's weights
    if not file.exists():
        write_atomically(file, weights_hash(base))
    found = file.read_text(encoding="utf-8")
    if about.weights not in (None, found) and (folder, found) not in _told:
        _told.add((folder, found))
        warnings.warn(
            f"{adapter} was trained on {about.name} with weights {str(about.weights)[:12]}, and "
            f"{base} has {found[:12]} (another precision or version): its embeddings may be worse",
            stacklevel=4,
        )
    return folder


def _files(folder: Path) -> list[Path]:
    """What a checkpoint is made of: not its card, nor a report beside it."""
    places = [folder, folder / "gem", folder / LORA]
    return [
        file
        for place in places
        if place.is_dir()
        for file in sorted(place.iterdir())
        if file.is_file() and file.name != "README.md"
    ]


def _stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    stats = ((str(file.absolute()), file.stat()) for file in files)
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _key(stamps: list[tuple[str, int, int]]) -> str:
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:24]


def _link(source: Path, target: Path, keep: str = "") -> None:
    """Link a checkpoint's files into another folder."""
    for file in source.iterdir():
        if file.name == "gem" and file.is_dir():
            (target / "gem").mkdir(exist_ok=True)
            _link(file, target / "gem")
        elif file.is_file() and (file.name not in NOT_COPIED or file.name == keep):
            place = target / file.name
            place.unlink(missing_ok=True)
            _link_file(file.absolute(), place)


def _link_file(file: Path, place: Path) -> None:
    try:
        place.symlink_to(file)
    except OSError:  # Windows lets few users make links
        shutil.copyfile(file, place)


def _merge(base: Path, lora: Path, folder: Path, dtype: str) -> None:
    """Write a base model's weights with peft's adapter merged into them."""
    import torch
    from peft import PeftModel

    from gem_rag.core.auto_model import load_language_model

    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model = load_language_model(base, dtype=torch.float32, use_safetensors=True)
    merged = PeftModel.from_pretrained(model, str(lora)).merge_and_unload()
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    merged.to(getattr(torch, dtype)).save_pretrained(folder)
