"""What the README shows runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import readme


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme.run(Path(__file__).parents[1] / "README.md")
