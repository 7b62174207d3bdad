"""Models by name: what is installed, a folder, a GGUF file, or the hub; as an ordinary folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gem_rag.core.base_model import BaseModel
from gem_rag.core.composed import compose, open_gguf
from gem_rag.core.gguf import SUFFIX
from gem_rag.core.model_packages import installed_base, model_names, model_package
from gem_rag.errors import InputError

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def find_model(
    model: str | Path,
    base: str | Path | None = None,
    revision: str | None = None,
    cache_folder: str | Path | None = None,
) -> tuple[str, Path, BaseModel | None]:
    """Find a model.

    Args:
        model: As of `open_checkpoint`; the others likewise.

    Returns:
        The name it has been found by (for files and folders, the absolute path); a folder that
        holds all of it; and the base of an adapter-only checkpoint.

    Raises:
        InputError: There is no such model, or the base of an adapter is missing.
    """
    folder, is_path = _locate(str(model), revision, cache_folder)
    name = str(folder) if is_path else str(model)
    if folder.is_file():
        folder = open_gguf(folder)
    about = BaseModel.read(folder)
    if about is None:
        if base is not None:
            raise InputError(f"{name} is a whole model and needs no base: leave base out")
        return name, folder, None
    whole = compose(folder, _find_base(name, about, base, cache_folder), about)
    return name, whole, about if base is None else replace(about, name=str(base), revision=None)


def _find_base(
    adapter: str, about: BaseModel, base: str | Path | None, cache_folder: str | Path | None
) -> Path:
    """The folder of an adapter's base model: as it was given, installed, in the hub's cache, or on
    the hub."""
    name, revision = (str(base), None) if base is not None else (about.name, about.revision)
    try:
        folder = None if Path(name).expanduser().exists() else installed_base(name)
        folder = folder or _locate(name, revision, cache_folder)[0]
    except InputError as error:
        raise InputError(
            f"{adapter} is an adapter for {name}, which is not installed, and {error}; or give "
            "another place with base="
        ) from None
    folder = open_gguf(folder) if folder.is_file() else folder
    if not (folder / "config.json").is_file() or BaseModel.read(folder) is not None:
        raise InputError(f"{folder} is no base model for {adapter}: give a whole one as base=")
    return folder


def _locate(model: str, revision: str | None, cache_folder: str | Path | None) -> tuple[Path, bool]:
    """A folder or a GGUF file, and whether the name is its path."""
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == SUFFIX):
        return path.resolve(), True
    if (package := model_package(model)) is not None:
        return package.folder, False
    if revision is None and (installed := installed_base(model)) is not None:
        return installed, False
    if path.exists():
        raise InputError(f"{model} is a file: give the folder that holds the model, or a GGUF file")
    # A hub name is 'owner/name' or 'name'; anything else was meant as a path.
    if (
        model.count("/") > 1
        or model.startswith((".", "/", "~"))
        or model.endswith(SUFFIX)
        or not model.strip()
    ):
        kind = "file" if model.endswith(SUFFIX) else "model folder"
        raise InputError(f"there is no {kind} {model!r}: check the path")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model, revision=revision, cache_dir=cache_folder, allow_patterns=_HUB_FILES
            )
        ), False
    except Exception as error:  # the hub client raises a dozen kinds, all of them "not to be had"
        raise InputError(
            f"model {model!r} is not installed ({', '.join(model_names())} is), not a folder here, "
            f"and could not be had from the hub ({type(error).__name__}): check the name and the "
            "network"
        ) from None
