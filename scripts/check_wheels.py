"""Builds every distribution, checks it, installs each alone in a new environment, and uses it.

python scripts/check_wheels.py [--out dist] [--no-install] [--tag v0.1.0]

A wheel is built from its source distribution, as an index's user would. --out keeps both; a release
publishes them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT, *sorted(p.parent for p in ROOT.glob("*/*/pyproject.toml")))
# What is installed is used, not what a developer's path has.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
USES = {
    "gem-rag": "import gem_rag; gem_rag.load().embed_queries(['What is a list?'])",
    "gem-smollm2-135m": "from gem_rag.core.model_packages import model_names; "
    "assert 'gem-smollm2-135m' in model_names()",
    "langchain-gem": "from langchain_gem import ChatGem, GemEmbeddings; "
    "GemEmbeddings().embed_query('What is a list?'); ChatGem(max_tokens=4).invoke('Hello')",
    "llama-index-llms-gem": "from llama_index.llms.gem import GemLLM; "
    "GemLLM(max_tokens=4).complete('A list is')",
    "llama-index-embeddings-gem": "from llama_index.embeddings.gem import GemEmbedding; "
    "GemEmbedding().get_query_embedding('What is a list?')",
}


def main(
    out: Annotated[Path | None, typer.Option(help="A new folder that keeps them.")] = None,
    install: Annotated[bool, typer.Option(help="Install each alone, and use it.")] = True,
    tag: Annotated[str, typer.Option(help="A release's, which must name the version.")] = "",
) -> None:
    """Build, check, install and use."""
    if tag and tag != f"v{(version := read_version())}":
        raise SystemExit(f"the tag {tag} is not that of version {version}")
    with tempfile.TemporaryDirectory() as scratch:
        place = (out or Path(scratch) / "dist").absolute()
        start = time.perf_counter()
        built = build(place)
        print(f"{len(built)} files built and checked in {time.perf_counter() - start:.0f} s")
        for name, use in USES.items() if install else ():
            start = time.perf_counter()
            check(name, use, place, Path(scratch) / name)
            print(f"{name}: installed alone and used in {time.perf_counter() - start:.0f} s")


def build(place: Path, *folders: Path) -> list[Path]:
    """Build distributions into a new folder and check them.

    Args:
        place: The folder, absolute.
        *folders: Those of the projects; default: all.

    Returns:
        A source distribution and a wheel for each.

    Raises:
        SystemExit: The folder is not empty, or a distribution lacks a file.
    """
    if place.exists() and any(place.iterdir()):
        raise SystemExit(f"{place} is not empty: name a new folder")
    for folder in folders or FOLDERS:
        run(sys.executable, "-m", "build", "--outdir", str(place), str(folder))
    built = sorted(place.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, built))
    problems = [problem for file in built for problem in faults(file)]
    if problems:
        raise SystemExit("\n".join(problems))
    return built


def read_version() -> str:
    """The version of all distributions."""
    text = (ROOT / "gem_rag" / "__init__.py").read_text(encoding="utf-8")
    [version] = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(version)


def read_project(folder: Path) -> dict[str, Any]:
    """The table `project` of a folder's pyproject.toml."""
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


def faults(file: Path) -> list[str]:
    """What a distribution lacks: typing's marker, or one of its project's license files."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    else:
        with tarfile.open(file) as archive:
            names = archive.getnames()
    [licenses] = [
        project["license-files"]
        for project in map(read_project, FOLDERS)
        if file.name.startswith(f"{project['name'].replace('-', '_')}-")
    ]
    wanted = ["py.typed", *licenses]
    return [
        f"{file.name} has no {one}"
        for one in wanted
        if not any(name.rpartition("/")[2] == one for name in names)
    ]


def check(name: str, use: str, wheels: Path, place: Path) -> None:
    """Install a distribution alone, and use it."""
    venv.create(place, with_pip=True)
    pip_install(place, "torch")  # first, so that its build for this machine is what the rest finds
    pip_install(place, "--find-links", str(wheels), name)
    run(str(place / "bin" / "python"), "-c", use, cwd=place)


def pip_install(environment: Path, *words: str) -> None:
    """Install into an environment, in the versions that everything is tested with."""
    versions = str(ROOT / "constraints.txt")
    python = str(environment / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--constraint", versions, *words)


def run(*command: str, cwd: Path = ROOT) -> None:
    """Run a command; raises if it fails."""
    subprocess.run(command, check=True, cwd=cwd, env=ENVIRONMENT)


if __name__ == "__main__":
    typer.run(main)
