"""Runs notebooks from a clean kernel, top to bottom, and saves what they show.

    python notebooks/run.py                     # all of them
    python notebooks/run.py 01 04               # these

They run in a scratch folder, so that each makes what it needs.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
LIMIT = 600  # seconds a cell


def main(
    names: Annotated[list[str] | None, typer.Argument(help="how they begin; default: all")] = None,
) -> None:
    """Run them in place, and say how long each took."""
    table = Table("notebook", "seconds")
    for file in notebooks(names or [""]):
        notebook, seconds = execute(file)
        nbformat.write(notebook, file)
        table.add_row(file.stem, f"{seconds:.0f}")
    Console().print(table)


def notebooks(names: list[str]) -> list[Path]:
    """Files that begin so, in order."""
    files = sorted(HERE.glob("*.ipynb"))
    return [file for file in files if file.name.startswith(tuple(names))]


def execute(file: Path) -> tuple[nbformat.NotebookNode, float]:
    """The notebook with its outputs, and the seconds it took.

    Raises CellExecutionError for the first cell that fails.
    """
    notebook = nbformat.read(file, as_version=4)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as sockets:
        NotebookClient(
            notebook,
            km=kernel(Path(sockets)),
            timeout=LIMIT,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": scratch}},
        ).execute()
    return notebook, time.perf_counter() - start


def kernel(sockets: Path) -> AsyncKernelManager:
    """This Python's, reached through files in a folder, without a network."""
    return AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(sockets / "kernel"))


if __name__ == "__main__":
    typer.run(main)
