"""The public interface: what `gem_rag` exports, and that the integrations use nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gem_rag

ROOT = Path(__file__).parents[1]
PUBLIC_MODULES = {"gem_rag", "gem_rag.adapters", "gem_rag.aio"}
INTEGRATION_MODULES = sorted((ROOT / "integrations").glob("*/l*/**/*.py"))
HEAVY_MODULES = ("torch", "transformers", "tokenizers", "numpy", "faiss", "chromadb")


def gem_rag_imports(source: str) -> set[str]:
    """The modules of gem-rag that a source file imports, or imports from."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    return {module for module in modules if module.split(".")[0] == "gem_rag"}


def test_every_integration_is_here() -> None:
    folders = {path.relative_to(ROOT / "integrations").parts[0] for path in INTEGRATION_MODULES}
    assert folders == {
        "langchain-gem",
        "llama-index-embeddings-gem",
        "llama-index-llms-gem",
    }


@pytest.mark.parametrize(
    "path", INTEGRATION_MODULES, ids=lambda path: path.relative_to(ROOT / "integrations").as_posix()
)
def test_integrations_import_public_modules_only(path: Path) -> None:
    assert gem_rag_imports(path.read_text(encoding="utf-8")) <= PUBLIC_MODULES


@pytest.mark.parametrize("name", gem_rag.__all__)
def test_exported_names_can_be_imported(name: str) -> None:
    assert getattr(gem_rag, name) is not None
    assert name in dir(gem_rag)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'gems'"):
        _ = gem_rag.gems


def test_importing_gem_rag_imports_no_heavy_module() -> None:
    script = f"import sys, gem_rag; print(*(m for m in {HEAVY_MODULES} if m in sys.modules))"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == []
