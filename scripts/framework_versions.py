"""Versions to try the adapters with: the lowest of their frameworks that they allow, or the newest.

    python scripts/framework_versions.py lowest|newest

Prints constraints for pip: those of `constraints.txt` without the frameworks and what is built on
them, whose versions pip then chooses; for "lowest" with each framework at its lower bound.
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
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.replace("_", "-").lower().startswith(FRAMEWORKS):
            yield line
    if which == "lowest":
        yield from sorted(set(lower_bounds()))


def lower_bounds() -> Iterator[str]:
    """NAME==VERSION for the frameworks that adapters depend on."""
    for file in sorted(ROOT.glob("integrations/*/pyproject.toml")):
        for line in tomllib.loads(file.read_text())["project"]["dependencies"]:
            requirement = Requirement(line)
            if requirement.name.startswith(FRAMEWORKS):
                [bound] = (s.version for s in requirement.specifier if s.operator == ">=")
                yield f"{requirement.name}=={bound}"


if __name__ == "__main__":
    print("\n".join(constraints(sys.argv[1])))
