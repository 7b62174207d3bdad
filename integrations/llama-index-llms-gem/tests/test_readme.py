"""The examples in the README run."""

from __future__ import annotations

from pathlib import Path

import pytest
import readme


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme.run_examples(Path(__file__).parents[1] / "README.md")
