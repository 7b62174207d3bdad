"""Runs what a README shows. Knows nothing about which."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def run(readme: Path) -> dict[str, Any]:
    """Run all Python in a README, in order; returns the names it leaves."""
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", readme.read_text("utf-8"), re.M | re.S):
        exec(compile(code, str(readme), "exec"), names)
    assert names
    return names
