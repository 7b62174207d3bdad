"""Runs the examples in a README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def run_examples(readme: Path) -> dict[str, Any]:
    """Run all Python code of a README in order; returns the resulting namespace."""
    namespace: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", readme.read_text("utf-8"), re.M | re.S):
        exec(compile(code, str(readme), "exec"), namespace)
    assert namespace
    return namespace
