"""Notebooks run from a clean kernel, and what they show is fit to be read."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from gem_rag.errors import InputError

HERE = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
NAMES = [file.stem for file in NOTEBOOKS]


def _runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebooks", HERE / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_six_are_here() -> None:
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_it_runs_from_a_clean_kernel(file: Path) -> None:
    if "vllm" in file.stem:
        pytest.importorskip("vllm")
    notebook, _ = _runner().execute(file)
    _check(notebook)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_what_is_saved_was_run_in_order_and_can_be_read(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    _check(notebook)
    assert file.stat().st_size < 1_000_000
    assert any("image/png" in output.get("data", {}) for output in _outputs(notebook)) or (
        file.stem[:2] in ("02", "03")
    )


def _check(notebook: NotebookNode) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert notebook.cells[0].cell_type == "markdown"
    assert "setup_notebook(" in code[0].source
    assert sum(cell.source.count("MODEL = ") for cell in code) == 1
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" or "setup_notebook(" in before.source, cell.source
            assert len(cell.source.splitlines()) <= 25, cell.source
    for output in _outputs(notebook):
        said = json.dumps(output)
        assert output.output_type != "error"
        assert output.get("name") != "stderr", said
        assert not re.search(r"Warning\b|Traceback", said), said
        for place in (sys.prefix, str(HERE.parent), "/tmp/"):
            assert place not in said, said
        assert len(output.get("text", "")) < 8000, said


def _outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


def test_the_guide_says_what_each_is_for() -> None:
    page = (HERE.parent / "docs" / "guides" / "notebooks.md").read_text()
    for file in NOTEBOOKS:
        assert f"notebooks/{file.name})" in page


@pytest.mark.slow
def test_errors_say_what_is_missing(tmp_path_factory: pytest.TempPathFactory) -> None:
    notebook = new_notebook(
        cells=[
            new_code_cell(source)
            for source in (
                "from gem_rag.interop.notebook import setup_notebook\n"
                "setup_notebook(numpy='numpy')",
                "index.search('x')",
                "import gem_rag\ngem_rag.load('nowhere')",
                "setup_notebook(numpy='numpy', nothing='gem-rag[some]', nought='gem-rag[some]')",
            )
        ]
    )
    kernel = _runner().kernel(tmp_path_factory.mktemp("k"))
    NotebookClient(notebook, km=kernel, allow_errors=True).execute()
    first, *failed = (cell.outputs for cell in notebook.cells)
    assert first == []
    unknown, model, package = ("\n".join(outputs[0].traceback) for outputs in failed)
    assert "'index' is made in a cell above" in unknown
    assert "model 'nowhere' is not installed" in model
    assert "In[" not in model  # no frames
    assert "needs nothing, nought: pip install 'gem-rag[some]'" in package


def test_a_plain_python_needs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from gem_rag.interop.notebook import setup_notebook

    monkeypatch.setitem(sys.modules, "IPython", None)
    setup_notebook(numpy="numpy")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_the_old_name_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="gem_rag.notebook is now called"):
        begin = importlib.import_module("gem_rag.notebook").begin
    with (
        pytest.warns(DeprecationWarning, match="begin is now called setup_notebook"),
        pytest.raises(InputError, match="needs nothing: pip install 'some'"),
    ):
        begin(nothing="some")
