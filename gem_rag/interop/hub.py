"""Checkpoints to and from the hub, by huggingface_hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gem_rag.core.base_model import BaseModel
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.errors import GemError, InputError

CARD = "README.md"


def push(folder: str | Path, repo: str, *, base: str | None = None, private: bool = False) -> str:
    """Upload a checkpoint's folder with its card.

    Args:
        folder: What `train` wrote.
        repo: The hub's name of it, "owner/name"; it is made if there is none.
        base: The hub's name of an adapter's base, where the adapter names a folder or a file of
            this machine.
        private: Whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        InputError: The folder is no GEM checkpoint, has no card, or its base would not be found
            elsewhere.
        GemError: The hub refuses.
    """
    from huggingface_hub import HfApi

    source = Path(folder).expanduser()
    if not source.is_dir():
        raise InputError(f"there is no folder {source}: give the one that training wrote")
    if not open_checkpoint(source).trained:
        raise InputError(f"{source} has not been GEM-trained: push it with hf upload")
    if not (source / CARD).is_file():
        raise InputError(f"{source} has no {CARD}: write a model card first")
    with tempfile.TemporaryDirectory() as name, _hub_errors(f"push {source} to {repo}"):
        named = _with_base(source, base, Path(name) / "copy")
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=named, commit_message="A checkpoint of gem-rag"
        )
    return str(commit.commit_url)


def pull(repo: str, out: str | Path | None = None, *, revision: str | None = None) -> Path:
    """Download a checkpoint.

    Args:
        repo: The hub's name of it.
        out: A new folder for it; default the hub's cache, where `load(repo)` finds it.
        revision: A branch, tag or commit.

    Returns:
        Where it is. An adapter's base is fetched when it is first loaded.

    Raises:
        InputError: `out` exists.
        GemError: The hub does not have it.
    """
    from huggingface_hub import snapshot_download

    target = None if out is None else Path(out).expanduser()
    if target is not None and target.exists():
        raise InputError(f"{target} exists already: choose another name, or remove it")
    with _hub_errors(f"pull {repo}"):
        path = Path(snapshot_download(repo, revision=revision))
    if target is None:
        return path
    shutil.copytree(path, target)  # of the cache's links, the files
    return target


def _with_base(folder: Path, base: str | None, copy: Path) -> Path:
    """A checkpoint whose base others find: the folder itself, or a copy that names it."""
    about = BaseModel.read(folder)
    if about is None and base is not None:
        raise InputError("a whole model has no base: leave base out")
    if about is not None and base is None and Path(about.name).is_absolute():
        raise InputError(
            f"the adapter's base is {about.name}, which is only on this machine: give the hub's "
            "name of it as base"
        )
    if about is None or base is None:
        return folder
    shutil.copytree(folder, copy)
    replace(about, name=base).save(copy)
    card = (copy / CARD).read_text(encoding="utf-8").replace(about.name, base)
    (copy / CARD).write_text(card, encoding="utf-8")
    return copy


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """What the hub or the network raises, as one sentence."""
    try:
        yield
    except GemError:
        raise
    except Exception as error:  # a dozen kinds, of huggingface_hub, httpx and the system
        reason = str(error).strip().split("\n")[0]
        raise GemError(
            f"could not {what} ({type(error).__name__}: {reason}): check the name, the network and "
            "`hf auth login`"
        ) from error
