"""`make check` refuses a lower bound that admits a version with a known vulnerability."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "check_advisories.py"
spec = importlib.util.spec_from_file_location("check_advisories", SCRIPT)
assert spec is not None
assert spec.loader is not None
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

MENDED = {"pdfminer-six": {"20251230": "a planted pickle"}}


@pytest.mark.parametrize("bound", ["", ">=20250506", "<20260101", "==20251107"])
def test_a_bound_that_admits_a_vulnerable_version_is_named(bound: str) -> None:
    [problem] = check.problems(f"pdfminer.six{bound}", MENDED)
    assert problem == (
        f"'pdfminer.six{bound}' admits a planted pickle: ask for pdfminer.six>=20251230"
    )


@pytest.mark.parametrize("bound", ["pdfminer.six>=20251230", "pdfminer_six[x]>=20260101", "numpy"])
def test_other_bounds_are_not(bound: str) -> None:
    assert not list(check.problems(bound, MENDED))


def test_extras_count_and_our_own_projects_do_not() -> None:
    project = {
        "project": {
            "dependencies": ["numpy>=2", "gem-rag[files]"],
            "optional-dependencies": {"files": ["lxml>=5"]},
        }
    }
    assert list(check.requirements(project)) == ["numpy>=2", "lxml>=5"]
