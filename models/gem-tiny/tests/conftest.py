"""Fixtures that several test files share."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # two test runs go side by side
settings.register_profile("gem", deadline=None, derandomize=True)  # the same examples every time
settings.load_profile("gem")


@pytest.fixture
def without_stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty standard library, since parsing the real one takes a minute."""
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "no-stdlib"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder of packages with sixty modules, and a docstring that all of them repeat."""
    folder = tmp_path / "site"
    for number in range(60):
        module = folder / "tools" / f"part{number}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(
            f'def act{number}(x):\n    """Do the thing of number {number}.\n\n'
            f'    It takes x and returns the {number}th of many things there are.\n    """\n'
            f'def same():\n    """A docstring that stands everywhere.\n\n    Word for word, '
            'everywhere, in all of the many parts of it.\n    """\n'
        )
    (folder / "tools" / "python2.py").write_text("print 'hello'")
    (folder / "tools" / "tests").mkdir()
    (folder / "tools" / "tests" / "test_x.py").write_text('"""Left out.\n\nAll of this text."""')
    return folder
