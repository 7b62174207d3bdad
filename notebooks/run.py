"""Runs notebooks from a clean kernel, top to bottom, and saves what they show.

    python notebooks/run.py                                    # all of them
    python notebooks/run.py 01 04                              # these
    python notebooks/run.py 01 --set MODEL=gem-smollm2-135m    # with another value; not saved

They run in a scratch folder, so that each makes what it needs. Where pyproject.toml has the
repository's address, each notebook gets a badge that opens it in Colab.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.util import run_sync
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))

from docs_sources import repository  # noqa: E402

LIMIT = 600  # seconds a cell
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="how they begin; default: all")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE; then nothing is saved")
    ] = None,
) -> None:
    """Run notebooks in place, and print how long each took."""
    values = dict(change.split("=", 1) for change in changes or [])
    table = Table("notebook", "seconds")
    for file in notebooks(names or [""]):
        notebook, seconds = execute(file, values)
        if not values:
            nbformat.write(notebook, file)
        table.add_row(file.stem, f"{seconds:.0f}")
    Console().print(table)


def notebooks(names: list[str]) -> list[Path]:
    """Files that begin so, in order."""
    files = sorted(HERE.glob("*.ipynb"))
    return [file for file in files if file.name.startswith(tuple(names))]


def execute(
    file: Path, values: dict[str, str] | None = None
) -> tuple[nbformat.NotebookNode, float]:
    """The notebook with its outputs, and the seconds it took.

    Args:
        file: The notebook.
        values: New values of its variables.

    Raises:
        CellExecutionError: A cell failed; the first one that did.
        ValueError: A variable is not assigned, on a line of its own, exactly once.
    """
    notebook = nbformat.read(file, as_version=4)
    for name, value in (values or {}).items():
        change(notebook, name, value)
    set_badge(notebook, file.name, repository())
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as sockets:
        manager = kernel(Path(sockets))
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=LIMIT,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": scratch}},
        )
        try:
            client.execute()
        finally:  # a client leaves the kernel that it was given running
            run_sync(manager.shutdown_kernel)(now=True)
    return notebook, time.perf_counter() - start


def change(notebook: nbformat.NotebookNode, name: str, value: str) -> None:
    """Give a variable another value; digits are a number."""
    written = value if value.isdigit() else repr(value)
    found = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            pattern = rf"^{re.escape(name)} = .*$"
            cell.source, count = re.subn(
                pattern, lambda _: f"{name} = {written}", cell.source, flags=re.MULTILINE
            )
            found += count
    if found != 1:
        raise ValueError(f"{name} is assigned {found} times; --set needs exactly one")


def set_badge(notebook: nbformat.NotebookNode, name: str, address: str) -> None:
    """Put the link to Colab below the title, if the repository has an address on GitHub."""
    first = notebook.cells[0]
    lines = [line for line in first.source.split("\n\n") if not line.startswith(BADGE)]
    if address.startswith("https://github.com/"):
        path = address.removeprefix("https://github.com/")
        link = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}"
        lines.insert(1, f"{BADGE}({link})")
    first.source = "\n\n".join(lines)


def kernel(sockets: Path) -> AsyncKernelManager:
    """This Python's, reached through files in a folder, without a network."""
    return AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(sockets / "kernel"))


if __name__ == "__main__":
    typer.run(main)
