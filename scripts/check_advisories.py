"""Hold the lower bounds in pyproject.toml to the versions in which known vulnerabilities ended.

A user's environment may hold any version that pyproject.toml admits, so the lowest one counts.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("advisories.toml")


def problems(requirement: str, mended: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What is wrong with a requirement's lower bound: a sentence for each vulnerability."""
    parsed = Requirement(requirement)
    bounds = [Version(s.version) for s in parsed.specifier if s.operator in (">=", "==", "~=")]
    for version, advisories in mended.get(canonicalize_name(parsed.name), {}).items():
        if not bounds or max(bounds) < Version(version):
            yield f"{requirement!r} admits {advisories}: ask for {parsed.name}>={version}"


def requirements(project: Mapping[str, Any]) -> Iterator[str]:
    """All requirements of a pyproject.toml, except on projects of this repository."""
    table = project["project"]
    for group in (table.get("dependencies", []), *table.get("optional-dependencies", {}).values()):
        yield from (one for one in group if not one.startswith("gem-"))


def main(files: Sequence[Path]) -> int:
    """Print each problem of the files; 1 if there is one."""
    table = tomllib.loads(TABLE.read_text())["mended"]
    mended = {canonicalize_name(name): versions for name, versions in table.items()}
    found = [
        f"{file.relative_to(ROOT)}: {problem}"
        for file in files
        for requirement in requirements(tomllib.loads(file.read_text()))
        for problem in problems(requirement, mended)
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sorted([ROOT / "pyproject.toml", *ROOT.glob("*/*/pyproject.toml")])))
