"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gem_rag.errors import GemError


def write_atomically(path: Path, text: str) -> None:
    """Write a file that readers see whole or not at all, and that survives a power cut.

    The text goes to a temporary file, which is flushed to disk and renamed over `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8") as handle:  # never through a link
        handle.write(text)
    flush_to_disk(path.parent)  # names of other new files, before anything refers to them
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Flush a file to disk, and only then give it its name, which is flushed too."""
    flush_to_disk(temporary)
    os.replace(temporary, path)
    flush_to_disk(path.parent)


def create_file(path: Path) -> BinaryIO:
    """A new file, open for writing; what an unfinished commit left under its name is removed, and a
    link is never followed."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder that takes `folder`'s place when the block ends without an error.

    Whatever stood there stays until then, and is left alone if the block fails.

    Raises:
        GemError: the folder could not be written.
    """
    from safetensors import SafetensorError

    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)
        old = new.with_name(new.name + "-old")
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise GemError(
            f"could not write {folder} ({error}): what was there is unchanged"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
