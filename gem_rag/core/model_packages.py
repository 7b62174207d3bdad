"""Models that installed distributions offer by name (entry points `gem_rag.models`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from gem_rag.errors import InputError

GROUP = "gem_rag.models"


@dataclass(frozen=True)
class ModelPackage:
    """A model in an installed distribution; what an entry point of the group is.

    Attributes:
        folder: The checkpoint: a whole one, or an adapter alone.
        bases: Finds models that the adapter can run on, by their hub names: each gives a folder or
            a GGUF file that is installed, or None.
    """

    folder: Path
    bases: Mapping[str, Callable[[], Path | None]] = field(default_factory=dict)


@cache
def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def model_names() -> list[str]:
    """The names of all models that are installed."""
    return sorted(_offered())


def model_package(name: str) -> ModelPackage | None:
    """The model of a name, or None if no distribution offers one.

    Raises:
        InputError: The distribution that offers it is broken.
    """
    point = _offered().get(name)
    if point is None:
        return None
    try:
        package = point.load()
    except Exception as error:  # whatever its import runs into
        raise InputError(
            f"the installed model {name!r} cannot be imported ({error}): install "
            f"{point.dist.name if point.dist else 'it'} again"
        ) from error
    if not isinstance(package, ModelPackage):
        raise InputError(f"the entry point {point.value} of {GROUP} is no ModelPackage")
    return package


def installed_base(name: str) -> Path | None:
    """A base model by its hub name, where some installed distribution has it."""
    for offered in _offered():
        package = model_package(offered)
        find = package.bases.get(name) if package else None
        if find is not None and (path := find()) is not None:
            return path
    return None
