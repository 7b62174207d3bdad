"""Data sets' files: where they lie, how they get there, and reading them quietly.

Data sets are read from the files of their repositories, at the revision that is asked for. Knows
nothing about tasks or models.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once
from pathlib import Path

_PATIENCE = 10  # seconds


def snapshot(
    repo: str, revision: str | None, cache: Path | None, download: bool = True
) -> Path | None:
    """Folder with the files of a data set, None if it is not to be had.

    repo: a name on the hub; a folder is what it is.
    revision: None for the newest.
    cache: as HF_HOME; default the hub's own place.
    download: what is not there, unless HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import snapshot_download

    if Path(repo).is_dir():
        return Path(repo).resolve()
    try:
        return Path(
            snapshot_download(
                repo, repo_type="dataset", revision=revision, cache_dir=_hub(cache),
                local_files_only=not (download and _online()),
            )
        )  # fmt: skip
    except Exception:  # the hub client raises a dozen kinds, all of them "not to be had"
        return None


def not_at_hand(repo: str, revision: str | None, cache: Path | None) -> str:
    """Which files are missing, where they go and how they get there."""
    at = f" --revision {revision}" if revision else ""
    return (
        f"its data set {repo} is not in {_hub(cache)} and could not be downloaded: run "
        f"'hf download {repo} --repo-type dataset{at} --cache-dir FOLDER' where there is a "
        f"network, and copy FOLDER/{place_of(repo, cache).name} to {place_of(repo, cache)}"
    )


@once
def _online() -> bool:
    """Whether the hub answers; asked once, since its client tries long for every data set."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # of a dozen kinds
        return False
    return True


def _hub(cache: Path | None) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(cache).expanduser().resolve() / "hub" if cache else Path(HF_HUB_CACHE)


def place_of(repo: str, cache: Path | None) -> Path:
    """Where the hub's client keeps a data set."""
    return _hub(cache) / f"datasets--{repo.replace('/', '--')}"


def first_line(error: Exception) -> str:
    """What an error of somebody else's says, in one line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Without the bars of `datasets`, and what these libraries tell their own users."""
    import datasets

    loggers = [logging.getLogger(library) for library in libraries]
    levels, barred = [one.level for one in loggers], datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for logger in loggers:
                logger.setLevel(logging.ERROR)
                warnings.filterwarnings("ignore", module=rf"{logger.name}\b")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not barred:
            datasets.enable_progress_bars()
