"""Tests of what only a GPU has; they are left out where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here, missing = Path(__file__).parent, not torch.cuda.is_available()
    for item in items:
        if missing and here in item.path.parents:
            item.add_marker(pytest.mark.skip("there is no CUDA device"))
