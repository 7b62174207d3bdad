"""Versions to try the adapters with: the lowest of their frameworks that they allow, or the newest.

    python scripts/framework_versions.py lowest|newest

Prints constraints for pip: those of `constraints.txt` without the frameworks and what is built on
them, whose versions pip then chooses; for "lowest" with each framework at its lower bound, for
"newest" only those of what gem-rag itself requires.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("langchain", "langgraph", "langsmith", "llama-index")


def constraints(which: str) -> Iterator[str]:
    """Lines of a constraints file."""
    own = {normalized(Requirement(line).name) for line in dependencies(ROOT / "pyproject.toml")}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name = normalized(line.partition("==")[0])
        # What the frameworks stand on is theirs to choose, too, when they are the newest.
        if not name.startswith(FRAMEWORKS) and (which == "lowest" or name in own):
            yield line
    if which == "lowest":
        yield from sorted(set(lower_bounds()))


def lower_bounds() -> Iterator[str]:
    """NAME==VERSION for the frameworks that adapters depend on."""
    for file in sorted(ROOT.glob("integrations/*/pyproject.toml")):
        for line in dependencies(file):
            requirement = Requirement(line)
            if requirement.name.startswith(FRAMEWORKS):
                [bound] = (s.version for s in requirement.specifier if s.operator == ">=")
                yield f"{requirement.name}=={bound}"


def dependencies(file: Path) -> list[str]:
    """What a distribution requires, by its pyproject.toml."""
    found: list[str] = tomllib.loads(file.read_text())["project"]["dependencies"]
    return found


def normalized(name: str) -> str:
    """A distribution's name as pip compares it."""
    return name.strip().lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    print("\n".join(constraints(sys.argv[1])))
